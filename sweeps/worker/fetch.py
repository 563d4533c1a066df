"""What jobs would need the internet for, brought here first: models, hub corpora, data of evaluation tasks."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from sweeps.planning import hub
from sweeps.steps.evaluate import TASK_FILES
from sweeps.steps.model_files import TOKENIZER, WEIGHTS, fetch_model
from sweeps.steps.registry import kind_of
from sweeps.steps.step import Step
from sweeps.store.store import Store

_WHAT = {"source": "model", "tokenizer_source": "tokenizer"}


def fetch_inputs(steps: Mapping[str, Step], store: Store, console: Console) -> bool:
    """Download the inputs of every step that is not done. Returns whether all of them are here.

    Models and task data go to the Hugging Face cache (HF_HOME, which nodes must see). A hub dataset is streamed and not
    stored, so its corpus step runs here.
    """
    missing = [step for step in steps.values() if not store.step(step.id).record()]
    for what, files in (("source", WEIGHTS), ("tokenizer_source", TOKENIZER)):
        for name, commit in sorted({source for step in missing if (source := _on_hub(step.how.get(what)))}):
            console.print(f"{_WHAT[what]} {name} at {commit[:12]}", highlight=False)
            fetch_model(name, commit, files)
    tasks = {(task, step.pinned.get(TASK_FILES)) for step in missing if (task := kind_of(step.kind).task_data(step))}
    for task, digest in sorted(tasks, key=str):
        console.print(f"data of task {task}", highlight=False)
        hub.fetch_task(task, store.task_files(digest) if digest else None)
    return _run_here([step.id for step in missing if kind_of(step.kind).online(step)], store)


def _on_hub(source: Mapping[str, str] | None) -> tuple[str, str] | None:
    return (source["hub"], source["revision"]) if source and "hub" in source else None


def _run_here(ids: list[str], store: Store) -> bool:
    from sweeps.worker.supervisor import DONE, Worker

    return not ids or Worker(store).run(ids) == DONE
