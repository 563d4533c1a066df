"""The hash of all code that jobs import; and for each kind of step that of what in it can change a result."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import other_code
from sweeps.steps.registry import KINDS
from sweeps.store import code, result_code
from sweeps.store.result_code import KINDS_OF_EXTENSIONS, result_hashes
from sweeps.store.store import Store
from tests.support.workers_here import finished

Edits = Mapping[str, Callable[[str], str]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code that jobs import, to be edited."""
    root = tmp_path_factory.mktemp("tree")
    code.copy_tree(root)
    return root


@pytest.fixture(scope="module")
def hashes(tree: Path) -> dict[str, str]:
    """Of the code as it is."""
    return result_hashes(tree)


@contextmanager
def edited(tree: Path, edits: Edits) -> Iterator[None]:
    before = {name: (tree / name).read_text(encoding="utf-8") for name in edits}
    for name, edit in edits.items():
        (tree / name).write_text(edit(before[name]), encoding="utf-8")
        assert (tree / name).read_text(encoding="utf-8") != before[name], name
    try:
        yield
    finally:
        for name, text in before.items():
            (tree / name).write_text(text, encoding="utf-8")


def changed(hashes: Mapping[str, str], tree: Path) -> set[str]:
    return {kind for kind, value in result_hashes(tree).items() if value != hashes[kind]}


def test_a_copy_has_the_hash_of_what_was_copied_and_every_kind_has_one(tree: Path, hashes: dict[str, str]) -> None:
    assert code.tree_hash(tree) == code.tree_hash()
    assert set(hashes) == {KINDS_OF_EXTENSIONS, *KINDS}


def unused(text: str) -> str:
    return text + "\nunused = 1\n"


def test_what_cannot_change_a_result_changes_the_snapshot_alone(tree: Path, hashes: dict[str, str]) -> None:
    whole = code.tree_hash(tree)
    edits: Edits = {
        "mlkv/merges.py": lambda text: text + "# a remark\n",
        "mlkv/train/step.py": lambda text: text.replace('"""', '"""Once more: ', 1),
        "mlkv/convert/heads.py": lambda text: text.replace("\n\n\n", "\n\n\n\n", 1),
        **dict.fromkeys(("sweeps/store/schema.py", "sweeps/steps/verify.py", "slurm/queue.py"), unused),
        **dict.fromkeys(("sweeps/cli/__init__.py", "sweeps/planning/plan.py"), unused),
    }
    with edited(tree, edits):
        assert changed(hashes, tree) == set()
        assert code.tree_hash(tree) != whole


def test_science_that_no_step_imports_counts_for_kinds_of_extensions_alone(tree: Path, hashes: dict[str, str]) -> None:
    more = "\n\ndef more() -> int:\n    return 1\n"
    edits: Edits = {"mlkv/__init__.py": lambda text: text + more, "mlkv/export/hub.py": unused}
    with edited(tree, edits):
        assert changed(hashes, tree) == {KINDS_OF_EXTENSIONS}


def test_what_can_change_a_result_changes_the_kinds_that_import_it(tree: Path, hashes: dict[str, str]) -> None:
    edits: Edits = {
        "mlkv/convert/step.py": lambda text: text.replace("0", "1"),
        "conf/tasks/heldout_cloze.yaml": lambda text: text + "# a remark\n",
    }
    with edited(tree, edits):
        assert changed(hashes, tree) == {KINDS_OF_EXTENSIONS, "convert", "evaluate"}
    with edited(tree, {"mlkv/__init__.py": lambda text: text + "\nprint()\n"}):
        assert changed(hashes, tree) == set(hashes)


STYLES = (
    "import mlkv.{0}",
    "from mlkv import {0}",
    "from mlkv.{0} import function",
    "from . import {0}",
    "from .{0} import function as another",
    "def later():\n    from mlkv.{0} import function",
    "class Row:\n    def method(self):\n        import mlkv.{0}",
    "ROWS = {{'row': 'mlkv.{0}:function'}}",
)
"""How a file names another one."""
MODULES = "abcdef"


@given(
    edges=st.dictionaries(
        st.sampled_from([*MODULES, "kind"]),
        st.dictionaries(st.sampled_from(MODULES), st.sampled_from(STYLES), max_size=3),
        max_size=7,
    ),
    edited_module=st.sampled_from(MODULES),
)
def test_a_file_counts_where_a_chain_of_imports_leads_to_it(
    edges: dict[str, dict[str, str]], edited_module: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("chain")

    def write(name: str, text: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    for module in (*MODULES, "kind"):
        lines = [style.format(other) for other, style in edges.get(module, {}).items()]
        if module == "kind":
            lines = [line.replace("from .", "from mlkv.").replace("mlkv. import", "mlkv import") for line in lines]
            write("sweeps/steps/kind.py", "\n".join([*lines, "KIND = 1"]))
        else:
            write(f"mlkv/{module}.py", "\n".join([*lines, "def function(): pass"]))
    for name in ("sweeps/worker/child_main.py", "sweeps/worker/fork_server.py", "mlkv/__init__.py"):
        write(name, "")
    before = result_hashes(root)
    reached, left = set[str](), ["kind"]
    while left:
        new = set(edges.get(left.pop(), {})) - reached
        reached |= new
        left += new
    write(f"mlkv/{edited_module}.py", (root / f"mlkv/{edited_module}.py").read_text() + "\nmore = 1")
    after = result_hashes(root)
    assert (before["kind"] != after["kind"]) == (edited_module in reached)
    assert before[KINDS_OF_EXTENSIONS] != after[KINDS_OF_EXTENSIONS]


IMPORT_EACH = """
import os, sys
import lm_eval, torch, transformers
for kind in sys.argv[1:]:
    if not os.fork():
        from importlib import import_module
        import sweeps.worker.child_main
        from sweeps.steps.registry import KINDS
        for module in (f"sweeps.steps.{kind}", *KINDS[kind].modules):
            import_module(module)
        files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
        print(kind, *files, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.long(minutes=1)
def test_all_that_steps_really_import_of_the_science_counts() -> None:
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *KINDS], cwd=code.ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    files = result_code.read_files(dict(code.sources()))
    lines = [line.split(" ") for line in run.stdout.splitlines()]
    assert [kind for kind, *_ in lines] == list(KINDS)
    for kind, *paths in lines:
        loaded = {path.removeprefix(f"{code.ROOT}/") for path in paths if path.startswith(f"{code.ROOT}/mlkv/")}
        loaded -= {name for name in loaded if name.endswith("__init__.py")}  # they do nothing; the ones that do count
        assert len(loaded) > 5
        assert loaded <= set(result_code.reached(files, f"sweeps/steps/{kind}.py")), kind


def test_a_plan_names_finished_steps_of_other_code_and_none_of_before_it_was_recorded(
    planner: Callable[[Sequence[str]], Plan], tiny: list[str], tmp_path: Path
) -> None:
    store, graph = Store(tmp_path), planner(tiny).steps
    same, other, earlier, before = list(graph.values())[:4]
    finished(store, same, {"result_code": store.result_code(same.kind)})
    finished(store, other, {"result_code": "2:feedfeedfeedfeed"})
    finished(store, earlier, {"result_code": "feedfeedfeedfeed"})
    finished(store, before, {})
    assert other_code(graph, store) == ([other.id], [earlier.id])


def test_the_hashes_of_results_are_computed_once_for_a_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(tmp_path).result_code("convert")
    monkeypatch.setattr(result_code, "result_hashes", lambda: pytest.fail("computed again"))
    assert Store(tmp_path).result_code("convert") == first
