"""Uploads exports and packs to the Hugging Face hub, or to another that HF_ENDPOINT names, and downloads packs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_repository(name: str, option: str = "--push") -> None:
    """Raises ValueError for a name that no repository has, and, to push, without a token: before anything is
    written."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"{option} = {name}: must be USER/REPO ({' '.join(str(error).split())})") from None
    if name.count("/") != 1:
        raise ValueError(f"{option} = {name}: must be USER/REPO")
    if option == "--push" and get_token() is None:
        raise ValueError("--push: no token for the hub: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str) -> str:
    """Upload a folder in one commit and return its address. A repository that is not there is made, and is private.

    Raises ValueError with the hub's reason.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _one_line(f"--push = {name}", f" ({folder} is written)"):
        api.create_repo(name, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an export of mlkv")
    return str(commit.commit_url)


def push_file(file: Path, name_there: str, repository: str) -> str:
    """Upload a file to a dataset repository, made private if it is not there, and return the commit's address.

    Raises ValueError with the hub's reason.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with _one_line(f"--push = {repository}"):
        api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        commit = api.upload_file(
            repo_id=repository,
            repo_type="dataset",
            path_or_fileobj=file,
            path_in_repo=name_there,
            commit_message="Upload a pack of mlkv",
        )
    return str(commit.commit_url)


def pull_files(repository: str, suffix: str, folder: Path) -> list[Path]:
    """Download every file of a dataset repository whose name ends so, all of one commit, into `folder`.

    Raises ValueError with the hub's reason, and where there is no such file.
    """
    from huggingface_hub import HfApi

    check_repository(repository, "--pull")
    api = HfApi()
    with _one_line(f"--pull = {repository}"):
        found = api.dataset_info(repository)
        names = sorted(file.rfilename for file in found.siblings or () if file.rfilename.endswith(suffix))
        if not names:
            raise ValueError(f"has no file that ends with {suffix}")
        if odd := [name for name in names if name.startswith("/") or ".." in name.split("/") or "\\" in name]:
            raise ValueError(f"{odd[0][:80]!a}: leads out of the repository")
        return [
            Path(api.hf_hub_download(repository, name, repo_type="dataset", revision=found.sha, local_dir=folder))
            for name in names
        ]


@contextmanager
def _one_line(option: str, rest: str = "") -> Iterator[None]:
    """The HTTP library that the client uses has errors of its own."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{option}: {reason}{rest}") from error
