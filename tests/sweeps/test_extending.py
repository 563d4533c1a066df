"""The examples of docs/extending.md, taken out of the page and run from a directory of their own."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlkv.layout import mha
from mlkv.merges import MERGES
from mlkv.patterns import make
from mlkv.recipes import ConvertRecipe
from mlkv.registry import PIN, extensions, files_of
from sweeps.planning.compose import Composer
from sweeps.planning.config import ModelConfig
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.steps.convert import convert_step
from sweeps.steps.extensions import is_training
from sweeps.steps.registry import KINDS, trains
from sweeps.steps.step import Step
from sweeps.store.store import Store
from sweeps.worker import child_main
from sweeps.worker.messages import Request
from sweeps.worker.supervisor import DONE, FAILED, Worker
from tests.support.shell import ROOT, exit_status
from tests.support.workers_here import workers_here

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([a-z_/]+\.(?:py|yaml))`[^\n]*:\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def texts(text_files: Path) -> str:
    return f"corpus.files=[{text_files}/*.txt]"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples, in a directory outside the repository; the store is beside it."""
    for name, text in FILES.items():
        (path := tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLKV_STORE", str(tmp_path / "store"))
    return tmp_path / "mine"


@contextmanager
def planned(mine: Path, *arguments: str) -> Iterator[Plan]:
    """The plan of a line of `mlkv sweep --config-dir mine`, frozen in the store."""
    store = Store.open(mine.parent / "store")
    with extensions(lambda: files_of(mine)):
        plan = make_plan(Composer(mine), Resolver(store), ["experiment=mine", *arguments])
        freeze(plan, store, list(arguments))
        yield plan


def run_here(store: Store, steps: list[str]) -> int:
    """A worker of a job, which knows of no directory of extensions."""
    with extensions(list), workers_here():
        return Worker(store).run(steps)


def test_the_page_shows_every_kind_of_row() -> None:
    tables = {name for text in FILES.values() for name in re.findall(r"^([A-Z_]+)\[\"", text, re.MULTILINE)}
    assert tables == {"PATTERNS", "LAYOUT_RULES", "MERGES", "CACHES", "TASKS", "METRICS", "KINDS", "FIGURES"}


def test_its_examples_are_planned_run_gathered_and_shown(
    mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with planned(mine, texts) as plan:
        assert {step.kind for step in plan.steps.values()} == {*KINDS} - {
            "measure",
            "calibrate",
            "teacher",
            "elastic",
            "similarity",
        }
        steps = list(plan.steps)
    shutil.rmtree(mine)  # what was planned is in the store
    assert run_here(Store(mine.parent / "store"), steps) == DONE
    capsys.readouterr()

    assert exit_status("table", "mine", "-o", "tables") == 0
    tables = "".join(path.read_text() for path in Path("tables").glob("*.md"))
    assert {
        name for name in ("Top-2", "repeated tokens", "bits per KV layer", "key similarity") if name not in tables
    } == set()
    assert exit_status("figure", "mine", "bytes", "-o", "figures") == 0
    assert Path("figures/bytes.pdf").is_file()
    assert exit_status("gather", "mine", "-o", "cells.csv") == 0
    assert "key_similarity" in Path("cells.csv").read_text()
    assert exit_status("report", "mine") == 0
    assert exit_status("status", "mine") == 0
    assert "closeness" in capsys.readouterr().out
    assert exit_status("status", "--verify") == 0, "of all sweeps, whose extensions are not here"
    assert "weighted" not in MERGES, "no row outlives its command"


def test_a_rule_of_ones_own_reads_what_it_names(mine: Path, texts: str) -> None:
    with planned(mine, texts, "layout.pattern=searched", "layout.rule=at_changes", "layout.budget=1") as plan:
        assert plan.following == 1
        assert [step.kind for step in plan.steps.values()] == ["corpus", "base", "similarity"]


# What uses a file, and what does not


@pytest.mark.parametrize(
    ("file", "anew"),
    [
        ("merges.py", {"convert", "uptrain", "evaluate", "closeness"}),
        ("repeats.py", {"evaluate"}),
        ("closeness.py", {"closeness"}),
        ("patterns.py", set()),
        ("rules.py", set()),
        ("figures.py", set()),
    ],
)
def test_an_edited_file_changes_the_steps_that_use_its_rows(mine: Path, texts: str, file: str, anew: set[str]) -> None:
    with planned(mine, texts) as plan:
        before = set(plan.steps)
    path = mine / "extensions" / file
    path.write_text(path.read_text() + "\n# edited\n")
    with planned(mine, texts) as plan:
        assert {step.kind for id, step in plan.steps.items() if id not in before} == anew


def test_the_same_file_name_in_two_directories_is_two_files(mine: Path, texts: str) -> None:
    other = mine.parent / "other"
    shutil.copytree(mine, other)
    path = other / "extensions" / "merges.py"
    path.write_text(path.read_text().replace("+ means[0]", "+ means[-1]").replace("+ 1)", "+ 1.0)"))
    with planned(mine, texts) as plan:
        pass
    with planned(other, texts) as another:
        pass
    shared = {step.label for id, step in plan.steps.items() if step.kind == "convert" and id in another.steps}
    assert shared == {"MHA-6"}, "which is not merged"
    store = Store(mine.parent / "store")
    copies = [path.read_text() for path in (store.root / "code" / "extensions").glob("*/merges.py")]
    assert sorted(copies) == sorted([FILES["extensions/merges.py"], path.read_text()])


# A job without its file


def first_of(plan: Plan, kind: str) -> tuple[str, str]:
    of_kind = [step for step in plan.steps.values() if step.kind == kind]
    pins = [(step.id, digest) for step in of_kind for name, digest in step.pinned.items() if name.startswith(PIN)]
    return pins[0]


@pytest.mark.parametrize("kind", ["convert", "closeness"])
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.unlink(), "is not in "),
        (lambda path: path.write_text("# edited\n" + path.read_text()), "was edited"),
    ],
)
def test_a_job_that_does_not_find_its_file_fails_before_it_computes(
    mine: Path, texts: str, kind: str, harm: Callable[[Path], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with planned(mine, texts) as plan:
        step, digest = first_of(plan, kind)
    store = Store(mine.parent / "store")
    path = store.extension(digest)
    assert path
    harm(path)
    monkeypatch.setattr(Worker, "_missing_input", lambda *_: None)
    assert run_here(store, [step]) == FAILED
    state = store.step(step).state()
    assert (state.name, "\n" in state.reason) == ("FAILED", False)
    assert reason in state.reason
    assert "run the sweep's line again" in state.reason


def test_a_kind_that_trains_is_known_to_the_workers_that_share_it(mine: Path, texts: str) -> None:
    path = mine / "extensions" / "closeness.py"
    path.write_text(path.read_text().replace("scores=True", "scores=True, trains=True"))
    with planned(mine, texts) as plan:
        step, _ = first_of(plan, "closeness")
    store = Store(mine.parent / "store")
    assert (spec := store.step(step).spec())
    with extensions(list):
        assert not trains(spec), "its row is not here yet"
        assert is_training(store, spec)


# The command line


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("broken.py", "x = (", "line 1: '(' was never closed"),
        ("empty.py", "", "adds no row to any table"),
        ("taken.py", "from sweeps.steps.registry import KINDS\nKINDS['corpus'] = KINDS['corpus']\n", "exists already"),
        ("group.py", "from sweeps.steps.registry import KINDS\nKINDS['layout'] = KINDS['corpus']\n", "another name"),
        ("absent.py", "import no_such_package\n", "ModuleNotFoundError"),
    ],
)
def test_a_file_that_cannot_be_used_ends_a_sweep_in_one_line(
    name: str, text: str, reason: str, mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mine / "extensions" / name
    path.write_text(text)
    assert exit_status("sweep", "--config-dir", str(mine), "experiment=mine", texts) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"mlkv: extension {path}: ")
    assert reason in error
    assert error.count("\n") == 1
    assert not Store(mine.parent / "store").sweep_names()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "convert.merge=nothing",
            "must be 'mean', 'pairwise', 'first', 'random', 'aligned', 'svd', 'fisher' or 'weighted'",
        ),
        ("closeness.centred=maybe", "closeness.centred = maybe: must be a valid boolean"),
        ("closeness.power=2", "closeness.power: unknown key; valid: centred"),
        ("closeness=default2", "closeness = default2: did you mean default? valid: default"),
        ("cluster.resources.closeness.cpu=2", "cluster.resources.closeness.cpu: unknown key; did you mean cpus?"),
    ],
)
def test_what_an_extension_does_not_have_is_refused_like_anything_else(
    override: str, message: str, mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("plan", "--config-dir", str(mine), "experiment=mine", texts, override) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "before", "after", "reason"),
    [
        ("closeness.py", "    if variant.checkpoint is None", "    variant.nothing\n    if variant.checkpoint is None",
         "step kind closeness: AttributeError: 'Planned' object has no attribute 'nothing'"),
        ("closeness.py", 'identity_fields(recipe), {"ch', '{"x": object()}, {"ch',
         "step kind closeness: TypeError: Object of type object is not JSON serializable"),
        ("patterns.py", "return from_owners(", "return 1 / 0 or from_owners(",
         "pattern top: ZeroDivisionError: division by zero"),
        ("patterns.py", "return from_owners(", "return None and from_owners(",
         "pattern top: TypeError: 'NoneType' object is not iterable"),
    ],
)  # fmt: skip
def test_code_of_an_extension_that_fails_while_planning_is_named_in_one_line(
    file: str, before: str, after: str, reason: str, mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mine / "extensions" / file
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))
    assert exit_status("sweep", "--config-dir", str(mine), "experiment=mine", texts) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"extension {path}: {reason}\n")
    assert (error[:6], error.count("\n")) == ("mlkv: ", 1)
    assert not Store(mine.parent / "store").sweep_names()


DRAWN = """
from analysis.figures.kinds import FIGURES, FigureKind
from analysis.tables.kinds import TABLES, TableKind

def shown(source, published):
    {body}

FIGURES["own"] = FigureKind("own", shown, needs="a layout")
TABLES["own"] = TableKind("own", shown)
"""


@pytest.mark.parametrize(
    ("body", "reason"),
    [("1 / 0", "ZeroDivisionError: division by zero"), ("return 'x'", "TypeError: must give a {} or None, not str")],
)
@pytest.mark.parametrize(
    ("command", "row", "kind"),
    [
        (["figure", "mine", "own", "-o", "figures"], "figure own", "matplotlib figure"),
        (["table", "mine"], "table own", "Table"),
    ],
)
def test_a_figure_or_table_that_fails_is_named_in_one_line(
    command: list[str],
    row: str,
    kind: str,
    body: str,
    reason: str,
    mine: Path,
    texts: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with planned(mine, texts):
        pass
    path = mine / "extensions" / "own.py"
    path.write_text(DRAWN.format(body=body))
    assert exit_status(*command, "--config-dir", str(mine)) == 2
    assert capsys.readouterr().err == f"mlkv: extension {path}: {row}: {reason.format(kind)}\n"
    assert not Path("figures").exists()


@pytest.mark.parametrize(
    "line", [("plan", "experiment=mine"), ("sweep", "corpus=text_files"), ("table", "mine"), ("retry", "mine")]
)
def test_a_directory_that_does_not_exist_is_refused(
    line: tuple[str, ...], mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with planned(mine, texts):
        pass
    for wrong in ("nowhere", "mine/experiment/mine.yaml"):
        assert exit_status(*line, "--config-dir", wrong) == 2
        assert capsys.readouterr().err == f"mlkv: --config-dir = {wrong}: no such directory\n"


@pytest.mark.parametrize("name", ["a b", "a,b", "it's", "~a", "a=[b]", "ü"])
def test_a_directory_may_have_any_name(
    name: str, mine: Path, texts: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine.rename(mine.parent / name)
    monkeypatch.setenv("HOME", str(mine.parent))
    for path in (f"./{name}", f"~/{name}"):
        assert exit_status("plan", "--config-dir", path, "experiment=mine", texts) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("None", "a step must return an Outcome, not NoneType"),
        ("Outcome([('key_similarity', 1.0)])", "the metrics of an Outcome must be MetricRows, not tuple"),
        ("Outcome([MetricRow('x', '1.0')])", "metric x: value must be a number, not str"),
        ("Outcome([MetricRow('x', 1.0, stderr=True)])", "metric x: stderr must be a number, not bool"),
        ("Outcome([MetricRow('x', float('nan'))])", "metric x: value = nan is not finite"),
        ("Outcome(facts={'x': object()})",
         "what the step returned cannot be written as JSON (Object of type object is not JSON serializable)"),
        ("exec('raise SystemExit(0)')", "SystemExit: 0"),
        ("exec('raise KeyboardInterrupt')", "KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_a_step_that_returns_what_no_record_holds_fails_in_one_line(
    result: str, reason: str, mine: Path, texts: str
) -> None:
    path = mine / "extensions" / "closeness.py"
    start, _, rest = path.read_text().partition("def run(execution: Execution) -> Outcome:\n")
    rows = rest[rest.index("KINDS[") :]
    path.write_text(f"{start}def run(execution: Execution) -> Outcome:\n    return {result}\n\n\n{rows}")
    with planned(mine, texts) as plan:
        step, _ = first_of(plan, "closeness")
    store = Store(mine.parent / "store")
    claim = store.step(step).claim()
    assert claim
    with extensions(list):
        answer = child_main._answer(store, Request(step=step, attempt=claim.attempt.number))
    assert (answer.state, answer.reason) == ("failed", reason)


def test_without_its_directory_a_kind_is_an_unknown_key(
    mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("plan", "+closeness={centred: true}", texts) == 2
    assert "closeness: unknown key; valid: base, " in capsys.readouterr().err


def test_a_new_option_is_yaml_alone_and_runs_no_extension(
    mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "extensions" / "loud.py").write_text("raise SystemExit('was run')\n")
    (mine / "layout").mkdir()
    (mine / "layout" / "ends.yaml").write_text("pattern: keep_ends\nkv_layers: 4\nkv_heads: 1\n")
    assert exit_status("plan", "--config-dir", str(mine), "layout=ends", texts, "corpus=text_files") == 0
    assert "KeepEnds-4" in capsys.readouterr().out


def test_a_figure_is_taken_from_the_directory_that_the_line_names(
    mine: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with planned(mine, texts):
        pass
    path = mine / "extensions" / "figures.py"
    path.write_text(path.read_text().replace('FIGURES["bytes"]', 'FIGURES["sizes"]'))
    assert exit_status("figure", "mine", "sizes") == 2
    assert "bytes" in capsys.readouterr().err
    assert exit_status("figure", "mine", "sizes", "--config-dir", str(mine)) == 0


def test_the_plan_names_the_files_and_plans_without_any_name_none(mine: Path, texts: str) -> None:
    with planned(mine, texts):
        pass
    store = Store(mine.parent / "store")
    plan = json.loads((store.sweep("mine").path / "plan.json").read_text())
    assert sorted(plan["extensions"]) == sorted(Path(name).name for name in FILES if name.startswith("extensions/"))
    with extensions(list):
        without = make_plan(Composer(), Resolver(store), [texts, "corpus=text_files", "name=plain"])
        freeze(without, store, [])
    assert "extensions" not in json.loads((store.sweep("plain").path / "plan.json").read_text())


@pytest.mark.parametrize(("merge", "ids"), [("mean", 1), ("random", 2), ("mine", 2)])
def test_the_seed_counts_for_a_merge_that_may_use_new_heads(merge: str, ids: int, tmp_path: Path) -> None:
    """An extension's function gets newly initialised heads too, and nobody else knows whether it uses them."""
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / "mine.py").write_text(
        "from mlkv.merges import MERGES\nMERGES['mine'] = lambda layers, fresh: fresh / 2\n"
    )
    layout = make("even", 4, 2, 2, 1)
    with extensions(lambda: files_of(tmp_path)):
        recipes = [ConvertRecipe(merge=merge, seed=seed) for seed in (1, 2)]
        steps = [convert_step(recipe, layout, mha(4, 2), Step("base", {}), None, "label") for recipe in recipes]
    assert len({step.id for step in steps}) == ids


def test_a_loaded_base_is_pinned_to_the_file_of_its_family(mine: Path) -> None:
    lines = (
        "from dataclasses import replace",
        "from mlkv.families.tables import FAMILIES",
        "FAMILIES['mine'] = replace(FAMILIES['llama'], name='mine')",
    )
    (mine / "extensions" / "family.py").write_text("\n".join(lines))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"model_type": "mine", "vocab_size": 64, "max_position_embeddings": 64, "hidden_act": "silu", **sizes}
    (folder := mine.parent / "checkpoint").mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    store = Store.open(mine.parent / "store")
    with extensions(lambda: files_of(mine)):
        pins = Resolver(store).model(ModelConfig("mine", path=str(folder))).pins
    assert pins.keys() == {"model", "extension family"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    assert Resolver(store).model(ModelConfig("llama", path=str(folder))).pins.keys() == {"model"}
