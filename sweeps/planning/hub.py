"""The Hugging Face hub at plan time: which commit a branch is now, and its config.json. Never an invented hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlkv.context import StepFailed
from mlkv.families.files import read_json_object
from sweeps.steps.model_files import TOKENIZER, local_copy
from sweeps.store.errors import UserError


class OutOfReach(UserError):
    """The hub does not answer, and nothing is cached."""


def model_commit(name: str, revision: str) -> str:
    """The commit that `revision` names, by the hub or, when that cannot be reached, by the local cache."""
    return _commit("model", name, revision, "model.path=DIR")


def tokenizer_commit(name: str, revision: str | None) -> str:
    return _commit("model", name, revision or "main", "corpus.tokenizer_from=DIR")


def dataset_commit(name: str, revision: str | None) -> str:
    return _commit("dataset", name, revision or "main", "corpus.dataset=DIR")


def _commit(kind: str, name: str, revision: str, instead: str) -> str:
    if _is_commit(revision):
        return revision
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        commit = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=10).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise UserError(f"{kind} {name} at {revision}: the hub has no such repository or revision") from None
    except Exception:  # offline mode, and errors of the HTTP library that the client uses
        commit = _cached_commit(kind, name, revision)
    if commit is None:
        raise OutOfReach(f"{kind} {name} at {revision}: the hub is out of reach and no copy is cached; set {instead}")
    return commit


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and all(c in "0123456789abcdef" for c in revision)


def _cached_commit(kind: str, name: str, revision: str) -> str | None:
    from huggingface_hub.constants import HF_HUB_CACHE

    reference = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else None


def model_config(name: str, commit: str) -> dict[str, Any]:
    """The published config.json of a commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = hf_hub_download(name, "config.json", revision=commit)
    except LocalEntryNotFoundError:
        raise OutOfReach(
            f"model {name} at {commit}: the hub is out of reach and no copy is cached; set model.path=DIR"
        ) from None
    except EntryNotFoundError:
        raise UserError(f"model {name} at {commit}: has no config.json") from None
    try:
        return read_json_object(Path(path))
    except ValueError as error:
        raise UserError(f"model {name} at {commit}: {error}") from None


def tokenizer_files(source: dict[str, str]) -> Path:
    """Where a tokenizer's files lie, fetched if need be."""
    try:
        return local_copy(source, TOKENIZER)
    except Exception:  # offline mode, and errors of the HTTP library that the client uses
        name = source["hub"]
        raise UserError(
            f"tokenizer of {name}: the hub is out of reach and no copy is cached, so nothing can be compared with it; "
            "leave corpus.tokenizer unset"
        ) from None


def fetch_task(task: str, copy: Path | None = None) -> None:
    """Have lm-eval download the data of one of its tasks, or of one that a copy of files defines, into the datasets
    cache."""
    from mlkv.evaluate.harness import fetch
    from mlkv.evaluate.task_files import TaskCopy

    try:
        fetch(task, TaskCopy.read(copy) if copy else None)
    except StepFailed as error:
        raise UserError(f"evaluate.tasks: {error}") from None
