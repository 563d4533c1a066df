"""The order of the house: who may import whom, and what must not load before it is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mlkv
from tests.support.house import (
    DRAWN,
    FORWARDS,
    PACKAGES,
    ROOMS,
    ROOT,
    drawing,
    imported,
    modules,
    needed,
    room_imports,
    room_of,
)

FLOORS = {package: ROOMS[package] for package in ("sweeps", "analysis")}
"""The floors of a package from the ground up: a room imports from its own floor and from those below it."""
MAY_IMPORT = {
    "mlkv": set(),
    "mlkv.__main__": {"sweeps.cli"},
    "mlkv.__init__": {"sweeps.api"},
    "slurm": set(),
    "sweeps": {"mlkv"},
    "sweeps.planning": {"mlkv", "slurm.profile", "slurm.resources"},
    "sweeps.dispatch": {"mlkv", "slurm"},
    "sweeps.cli": {"mlkv", "analysis"},
    "sweeps.api": {"mlkv", "analysis"},
    "analysis": {
        "sweeps.store",
        "sweeps.steps.registry",
        "sweeps.tracking.read",
        "mlkv.cache.formats",  # without torch: the name of the cache that is a model's own
        "mlkv.files",
        "mlkv.groupings",
        "mlkv.layout",
        "mlkv.evaluate.entry_rule",  # a rule over two numbers, which tables say in words
        "mlkv.evaluate.outcomes",  # numpy alone: one type and one format for who writes samples and who compares them
        "mlkv.signature",  # rules over numbers, too
        "mlkv.similarity.results",  # numpy alone, for the same reason
        "mlkv.patterns",
        "mlkv.training_recipes",  # plain dataclasses: what a configuration leaves out has their defaults
        "mlkv.registry",
        "mlkv.rules",  # what chooses layouts is science; analysis scores it
        "mlkv.context",
    },
}
"""What a package, one of its rooms or one module takes from other packages."""
HEAVY = {"torch", "transformers", "wandb", "pandas", "hydra", "matplotlib", "lm_eval", "datasets"}


def is_within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.") or allowed.startswith(f"{name}.")


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_nobody_imports_what_is_not_theirs(module: str, path: Path) -> None:
    package, names = module.split(".")[0], imported(module, path)
    places = (f"{module}.{path.stem}", module, room_of(module), package)
    allowed = next(MAY_IMPORT[each] for each in places if each in MAY_IMPORT)
    ours = {name for name in names if name.split(".")[0] in set(PACKAGES) - {package}}
    assert not {name for name in ours if not any(is_within(name, a) for a in allowed)}
    if package == "analysis":
        assert not {name for name in names if name.split(".")[0] in ("torch", "transformers")}


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_a_room_imports_from_no_floor_above_it(module: str, path: Path) -> None:
    package, room = module.split(".")[0], room_of(module).rpartition(".")[2]
    floors = FLOORS.get(package, ())
    if room not in floors:
        return
    above = {f"{package}.{higher}" for higher in floors[floors.index(room) + 1 :]}
    assert not {name for name in imported(module, path) if room_of(name) in above}


@pytest.mark.parametrize("package", FLOORS)
def test_every_file_is_in_a_room(package: str) -> None:
    files = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__", "__main__"}
    folders = {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()}
    assert files | folders == set(ROOMS[package])
    assert files <= {"api"}


def test_the_rooms_import_each_other_in_no_circle() -> None:
    TopologicalSorter(room_imports()).prepare()


def test_the_drawing_shows_every_room_and_import() -> None:
    graph = room_imports()
    assert set(DRAWN) == set(graph)
    drawn = (ROOT / "docs" / "house.svg").read_text(encoding="utf-8")
    assert drawn == drawing(graph), "python -m tests.support.house > docs/house.svg"


def test_an_import_that_follows_from_others_is_not_drawn() -> None:
    assert needed({"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": set()}) == {
        "a": {"b", "d"},
        "b": {"c"},
        "c": set(),
        "d": set(),
    }


def test_one_module_runs_slurms_commands() -> None:
    """Whoever names one of them starts no process: only slurm.command does, where every failure becomes one line. The
    local cluster is a SLURM of its own and starts its daemons."""
    commands = {"sbatch", "squeue", "sacct", "sacctmgr", "scancel", "scontrol", "sinfo", "srun", "salloc", "sprio"}
    asking = set()
    for module, path in modules():
        if module == "slurm.command" or module.startswith("slurm.local_cluster"):
            continue
        text = path.read_text()
        names = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
        if names & commands:
            asking.add(module)
            assert not re.search(r"subprocess|os\.(?:system|popen|exec|spawn)|CommandFunction|_submit_command", text), (
                module
            )
    assert asking == {"slurm.queue", "slurm.sbatch", "slurm.site"}


def test_the_packages_themselves_are_empty() -> None:
    for package in set(PACKAGES) - {FORWARDS}:
        assert (ROOT / package / "__init__.py").read_text() == ""


def test_the_one_that_forwards_imports_nothing_before_a_name_is_used() -> None:
    assert not loaded("import mlkv") & {*HEAVY, "sweeps", "analysis", "typing", "omegaconf"} - loaded("")
    with pytest.raises(AttributeError, match="has no attribute 'loads'"):
        _ = mlkv.loads
    assert set(mlkv.__all__) <= set(dir(mlkv))


def test_opening_a_store_loads_nothing_heavy() -> None:
    code = "import mlkv; store = mlkv.load('tests/sweeps/old_store/store'); store.imports; repr(store)"
    assert not loaded(code) & {*HEAVY, "omegaconf"}


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    code = "from sweeps.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not loaded(code) & HEAVY


def test_planning_loads_neither_torch_nor_numpy() -> None:
    assert not loaded(
        "import sweeps.planning.plan, sweeps.dispatch.local_loop, sweeps.cli.view, sweeps.worker.supervisor"
    ) & {*(HEAVY - {"hydra"}), "numpy"}


def test_status_loads_no_planning() -> None:
    code = "import sweeps.cli.status, sweeps.cli.view, sweeps.cli.json_output, sweeps.planning.reconcile"
    assert not loaded(code) & {*HEAVY, "hydra", "omegaconf", "numpy"}


def test_a_saved_table_is_printed_without_pandas() -> None:
    assert not loaded("import sweeps.cli.results, analysis.tables.saved, analysis.tables.terminal") & HEAVY


def test_analysis_loads_no_torch() -> None:
    code = "import analysis.data.gather, analysis.page.report, analysis.figures.drawing, analysis.tables.paper"
    assert not loaded(code) & {"torch", "transformers"}
