"""What was frozen at submission is what runs: each job asserts its code and its step's configuration."""

from __future__ import annotations

import os
from pathlib import Path

import mlkv.recipes
from mlkv.context import StepFailed
from mlkv.registry import ExtensionError
from sweeps.steps.extensions import load_pinned, pinned_task
from sweeps.steps.registry import outdated
from sweeps.steps.step import Step, described_by
from sweeps.store.schema import Runtime
from sweeps.store.store import Store

CODE = "MLKV_CODE"
"""Set by the process that starts jobs: the hash of the code they must run."""


def check(store: Store, step_id: str) -> None:
    """Raises StepFailed where this process runs other code than was submitted, or the step's spec was edited, or an
    extension that the step needs is not in the store as it was planned. Its rows are in the tables then."""
    _check_code(store)
    spec = store.step(step_id).spec()
    if spec is None:
        raise StepFailed(f"{step_id}: its spec.json is gone; plan the sweep again")
    if (described := described_by(spec)) != step_id:
        raise StepFailed(f"{step_id}: spec.json was edited (it now describes {described}); plan the sweep again")
    try:
        load_pinned(store, spec.pinned)
        pinned_task(store, spec.pinned)
    except ExtensionError as error:
        raise StepFailed(str(error)) from error
    # This code would give the step's id to a result that means something else.
    if reason := outdated({step_id: Step.of_spec(spec, Runtime())}).get(step_id):
        raise StepFailed(f"{step_id}: was planned under an earlier schema ({reason}); run the sweep's line again")


def _check_code(store: Store) -> None:
    expected = os.environ.get(CODE)
    if expected is None:
        return
    snapshot = store.code(expected)
    for file in (__file__, mlkv.recipes.__file__):
        if not Path(file).is_relative_to(snapshot):
            raise StepFailed(f"code: {file} was imported, not the snapshot {snapshot}")
    if store.code_hash != expected:
        raise StepFailed(f"code: the snapshot {snapshot} was edited; it now has the hash {store.code_hash}")
