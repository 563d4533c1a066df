"""Two hashes of the code: of all that jobs import, and of what in it can change a result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import other_code
from sweeps.store import code
from sweeps.store.store import Store
from tests.support.workers_here import finished

FILE = "mlkv/merges.py"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code that jobs import, to be edited."""
    root = tmp_path_factory.mktemp("tree")
    code.copy_tree(root)
    return root


def after(tree: Path, name: str, edit: Callable[[str], str]) -> tuple[bool, bool]:
    """Whether the hash of all code, and that of results, change where a file is edited."""
    path, before = tree / name, (code.tree_hash(tree), code.result_hash(tree))
    whole = path.read_text(encoding="utf-8")
    path.write_text(edit(whole), encoding="utf-8")
    try:
        return code.tree_hash(tree) != before[0], code.result_hash(tree) != before[1]
    finally:
        path.write_text(whole, encoding="utf-8")


def test_a_copy_has_the_hashes_of_what_was_copied(tree: Path) -> None:
    assert code.tree_hash(tree) == code.tree_hash()
    assert code.result_hash(tree) == code.result_hash()


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (FILE, lambda text: text + "# a remark\n"),
        (FILE, lambda text: text.replace('    """Of all heads of all layers."""', '    """Over all heads."""')),
        (FILE, lambda text: text.replace("\n\n\n", "\n\n\n\n", 1)),
        ("sweeps/store/schema.py", lambda text: text + "\nunused = 1\n"),
        ("slurm/queue.py", lambda text: text + "\nunused = 1\n"),
        ("sweeps/cli/__init__.py", lambda text: text + "\nunused = 1\n"),
    ],
)
def test_what_cannot_change_a_result_changes_the_snapshot_alone(
    name: str, edit: Callable[[str], str], tree: Path
) -> None:
    assert after(tree, name, edit) == (True, False)


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (FILE, lambda text: text.replace("/ 2", "/ 3")),
        (FILE, lambda text: text.replace("layer.mean(1)", "layer.mean(dim=1)")),
        ("mlkv/context.py", lambda text: text.replace('"""', 'x = """', 1)),
        ("sweeps/steps/convert.py", lambda text: text.replace('"seed"', '"sead"')),
        ("sweeps/worker/child_main.py", lambda text: text + "\nunused = 1\n"),
        ("conf/tasks/heldout_cloze.yaml", lambda text: text + "# a remark\n"),
    ],
)
def test_what_can_change_a_result_changes_both(name: str, edit: Callable[[str], str], tree: Path) -> None:
    assert after(tree, name, edit) == (True, True)


def test_a_plan_names_finished_steps_of_other_code_and_none_of_before_it_was_recorded(
    planner: Callable[[Sequence[str]], Plan], tiny: list[str], tmp_path: Path
) -> None:
    store, graph = Store(tmp_path), planner(tiny).steps
    same, other, before = list(graph.values())[:3]
    finished(store, same, {"result_code": store.result_code})
    finished(store, other, {"result_code": "feedfeedfeedfeed"})
    finished(store, before, {})
    assert other_code(graph, store) == [other.id]


def test_the_hash_of_results_is_computed_once_in_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(tmp_path).result_code
    monkeypatch.setattr(code, "result_hash", lambda: pytest.fail("computed again"))
    assert Store(tmp_path).result_code == first
