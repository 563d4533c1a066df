"""The order of the house: who may import whom, and what must not load before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mlkv", "sweeps", "slurm", "analysis")
ROOMS = {
    "sweeps": ("store", "steps", "tracking", "planning", "worker", "dispatch", "cli"),
    "analysis": ("data", "statistics", "tables", "figures", "page"),
}
"""The floors of a package from the ground up: a room imports from its own floor and from those below it."""
MAY_IMPORT = {
    "mlkv": set(),
    "mlkv.__main__": {"sweeps.cli"},
    "slurm": set(),
    "sweeps": {"mlkv"},
    "sweeps.planning": {"mlkv", "slurm.profile", "slurm.resources"},
    "sweeps.dispatch": {"mlkv", "slurm"},
    "sweeps.cli": {"mlkv", "analysis"},
    "analysis": {
        "sweeps.store",
        "sweeps.steps.registry",
        "sweeps.tracking.read",
        "mlkv.files",
        "mlkv.layout",
        "mlkv.evaluate.outcomes",  # numpy alone: one type and one format for who writes samples and who compares them
        "mlkv.patterns",
        "mlkv.registry",
        "mlkv.context",
    },
}
"""What a package, one of its rooms or one module takes from other packages."""
HEAVY = {"torch", "transformers", "wandb", "pandas", "hydra", "matplotlib", "lm_eval", "datasets"}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imported(module: str, path: Path) -> set[str]:
    """Full names of what a file imports, at any depth."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module])) if node.level else node.module or ""
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str:
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return f"{package}.{room}" if room in ROOMS.get(package, ()) else package


def is_within(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.") or allowed.startswith(f"{name}.")


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_nobody_imports_what_is_not_theirs(module: str, path: Path) -> None:
    package, names = module.split(".")[0], imported(module, path)
    allowed = next(MAY_IMPORT[each] for each in (module, room_of(module), package) if each in MAY_IMPORT)
    ours = {name for name in names if name.split(".")[0] in set(PACKAGES) - {package}}
    assert not {name for name in ours if not any(is_within(name, a) for a in allowed)}
    if package == "analysis":
        assert not {name for name in names if name.split(".")[0] in ("torch", "transformers")}


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_a_room_imports_from_no_floor_above_it(module: str, path: Path) -> None:
    package, room = module.split(".")[0], room_of(module).rpartition(".")[2]
    floors = ROOMS.get(package, ())
    if room not in floors:
        return
    above = {f"{package}.{higher}" for higher in floors[floors.index(room) + 1 :]}
    assert not {name for name in imported(module, path) if room_of(name) in above}


@pytest.mark.parametrize("package", ROOMS)
def test_every_file_is_in_a_room(package: str) -> None:
    outside = {path.stem for path in (ROOT / package).glob("*.py")}
    assert outside <= {"__init__", "__main__"}
    assert {path.name for path in (ROOT / package).iterdir() if (path / "__init__.py").exists()} == set(ROOMS[package])


def test_the_packages_themselves_are_empty() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").read_text() == ""


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has after running `code`."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_help_loads_nothing_heavy() -> None:
    code = "from sweeps.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not loaded(code) & HEAVY


def test_planning_loads_neither_torch_nor_pandas() -> None:
    assert not loaded(
        "import sweeps.planning.plan, sweeps.dispatch.local_loop, sweeps.cli.view, sweeps.worker.supervisor"
    ) & (HEAVY - {"hydra"})


def test_analysis_loads_no_torch() -> None:
    code = "import analysis.data.gather, analysis.page.report, analysis.figures.drawing, analysis.tables.paper"
    assert not loaded(code) & {"torch", "transformers"}
