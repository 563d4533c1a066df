"""Uploads an export to the Hugging Face hub, or to another that HF_ENDPOINT names."""

from __future__ import annotations

from pathlib import Path


def check_repository(name: str) -> None:
    """Raises ValueError for a name that no repository has, and without a token: before anything is written."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"--push = {name}: must be USER/REPO ({' '.join(str(error).split())})") from None
    if name.count("/") != 1:
        raise ValueError(f"--push = {name}: must be USER/REPO")
    if get_token() is None:
        raise ValueError("--push: no token for the hub: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, name: str) -> str:
    """Upload a folder in one commit and return its address. A repository that is not there is made, and is private.

    Raises ValueError with the hub's reason.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload an export of mlkv")
    except Exception as error:  # the HTTP library that the client uses has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"--push = {name}: {reason} ({folder} is written)") from error
    return str(commit.commit_url)
