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
MAY_IMPORT = {
    "mlkv": set(),
    "slurm": set(),
    "sweeps": {"mlkv"},
    "analysis": {"sweeps.store", "sweeps.config", "mlkv.layout"},
}
ALSO = {
    "sweeps.gathering": {"analysis"},
    "sweeps.writing": {"analysis"},
    "sweeps.cli": {"analysis.kinds"},
    "sweeps.view": {"analysis.units"},
    "sweeps.sync": {"analysis"},
    "sweeps.mirroring": {"analysis"},
    "sweeps.dispatch": {"slurm"},
    "sweeps.queued": {"slurm"},
    "sweeps.config": {"slurm.profile"},
}
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


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_nobody_imports_what_is_not_theirs(module: str, path: Path) -> None:
    package = module.split(".")[0]
    allowed = MAY_IMPORT[package] | (ALSO.get(module, set()))
    ours = {name for name in imported(module, path) if name.split(".")[0] in set(PACKAGES) - {package}}
    strangers = {
        name
        for name in ours
        if not any(name == a or name.startswith(f"{a}.") or a.startswith(f"{name}.") for a in allowed)
    }
    assert not strangers
    if package == "analysis":
        assert not {name for name in imported(module, path) if name.split(".")[0] in ("torch", "transformers")}


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
    assert not loaded("import sweeps.plan, sweeps.launch, sweeps.view, sweeps.worker") & (HEAVY - {"hydra"})


def test_analysis_loads_no_torch() -> None:
    code = "import analysis.gather, analysis.report, analysis.figures, analysis.tables"
    assert not loaded(code) & {"torch", "transformers"}
