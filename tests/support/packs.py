"""A sweep that was really planned, with made-up outputs; packs that are not as `mlkv pack` writes them."""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlkv.evaluate.outcomes import Outcomes, save
from mlkv.files import Json
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.steps.step import Step
from sweeps.store.store import Store
from tests.support.records import MEASURED, record_of

Files = dict[str, bytes]


@dataclass(frozen=True)
class Packed:
    """Ada's store with a finished sweep, the line and the plan of it, and her packs."""

    folder: Path
    store: Store
    line: list[str]
    plan: Plan

    def file(self, weights: str = "none") -> Path:
        return self.folder / f"{weights}.mlkv"


def fill(store: Store, plan: Plan, line: list[str], seed: int = 0) -> None:
    """Freeze a plan, and let every step be done."""
    freeze(plan, store, line)
    for step in plan.steps.values():
        finish(store, step, seed)


def finish(store: Store, step: Step, seed: int = 0) -> None:
    """Let a step be done, with outputs that follow from its id and the seed."""
    claim = store.step(step.id).claim()
    assert claim
    noise = np.random.default_rng([seed, *step.id.encode()])
    out: Path = claim.attempt.out
    metrics: list[Json] = [{"metric": "loss", "value": 1 + float(noise.random())}]
    claim.attempt.metrics_file.write_text('{"step": 1, "steps": 1, "loss": 2.5, "time": 1.0}\n')
    if step.kind == "evaluate":
        parts = noise.random(8)
        outcomes = Outcomes(np.arange(8), parts, np.ones(8))
        metrics = [{"metric": name, "value": outcomes.value, "n": 8} for name in ("acc", "bits_per_byte")]
        save({metric["metric"]: outcomes for metric in metrics}, out)
    elif step.kind == "measure":
        cell = {"batch": 1, "context": 32}
        names = ("cache_bytes", "cache_bytes_per_token", "tokens_per_second")
        metrics = [{"metric": name, "value": 100 + float(noise.random()), **cell} for name in names]
    else:
        (out / "config.json").write_text("{}")
        (out / "model.py").write_text("raise SystemExit('never run')")
        (out / "model.safetensors").write_bytes(noise.bytes(100))
    assert claim.step.publish(claim, record_of(claim, {**MEASURED, "work": 5.0, "metrics": metrics}))
    claim.attempt.finish("done", "", 0)
    claim.release()


def contents(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def forged(path: Path, files: Mapping[str, bytes], **manifest: Any) -> Path:
    """A pack with these members, and a manifest that fits them."""
    found = json.loads(files["manifest.json"])
    members = {name: content for name, content in files.items() if name != "manifest.json"}
    found["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in members.items()
    }
    return written(path, [("manifest.json", json.dumps({**found, **manifest}).encode()), *members.items()])


def written(path: Path, members: Iterable[tuple[str, bytes]], mode: Callable[[str], int] = lambda _: 0o100644) -> Path:
    """A zip file, whatever it holds. mode: of a member, as stat(2) has it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as it is given, also where a zip file should not have such a name
            info.create_system, info.external_attr = 3, mode(name) << 16
            archive.writestr(info, content)
    return path


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder, with its kind and content; not when it was written."""
    return {
        path.relative_to(root).as_posix(): (
            stat.S_IFMT(path.lstat().st_mode),
            b"" if path.is_dir() else path.read_bytes(),
        )
        for path in sorted(root.rglob("*"))
    }
