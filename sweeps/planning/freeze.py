"""Freezes a plan: writes it to the store, so that later edits of the configuration do not change its jobs."""

from __future__ import annotations

from dataclasses import replace

from mlkv.registry import load_extensions
from sweeps.planning.plan import Plan
from sweeps.planning.reconcile import withdraw_left_out
from sweeps.store.errors import StoreError
from sweeps.store.outside import plain_reason
from sweeps.store.schema import Runtime
from sweeps.store.store import SavedSweep, Store


def freeze(plan: Plan, store: Store, arguments: list[str]) -> SavedSweep:
    """Write the plan, every step's spec and the extensions, so that nothing edited later changes what jobs do. Raises
    StoreError where the store cannot be written, and ExtensionError for a file that no step needs but that tables or
    figures would stumble over."""
    extensions = load_extensions()
    try:
        for extension in extensions:
            store.copy_extension(extension)
        for digest, files in plan.task_files.items():
            store.copy_task(digest, files.copy)
        withdraw_left_out(plan.steps, store, plan.stopped)
        for id, step in plan.steps.items():
            directory = store.step(id)
            # A finished step keeps its runtime fields: they say how its result was made.
            if directory.record() is None or directory.spec() is None:
                directory.write_spec(step.spec, Runtime(fields=step.how))
    except OSError as error:
        raise StoreError(
            f"sweep {plan.name}: its steps cannot be written to {store.root} ({plain_reason(error)})"
        ) from None
    plan_file = plan.plan_file(arguments)
    if extensions:
        plan_file = replace(plan_file, extensions={each.path.name: each.digest for each in extensions})
    return store.save_sweep(plan.name, plan_file, [variant.row() for variant in plan.variants], arguments)
