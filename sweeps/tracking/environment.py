"""The environment in which W&B's client runs."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sweeps.store.code import import_variables
from sweeps.tracking.target import Target

OF_THE_SERVER = frozenset(
    {
        "WANDB_API_KEY",
        "WANDB_APP_URL",
        "WANDB_BASE_URL",
        "WANDB_CACHE_DIR",
        "WANDB_CONFIG_DIR",
        "WANDB_CREDENTIALS_FILE",
        "WANDB_DATA_DIR",
        "WANDB_ENTITY",
        "WANDB_ERROR_REPORTING",
        "WANDB_HTTP_TIMEOUT",
        "WANDB_IDENTITY_TOKEN_FILE",
        "WANDB_INSECURE_DISABLE_SSL",
        "WANDB_USERNAME",
        "WANDB_USER_EMAIL",
        "WANDB__EXTRA_HTTP_HEADERS",
    }
)


def environment(target: Target | None = None) -> dict[str, str]:
    """The environment of a process that writes to W&B. Of W&B's own variables it has those that say where the server is
    and who asks. The others are about a run of the shell's own (WANDB_MODE, WANDB_RUN_ID, WANDB_SWEEP_ID, WANDB_TAGS,
    WANDB_SERVICE …): its client would prefer some of them to what we say, and refuses what it does not understand.
    """
    return {
        **_without_a_run(os.environ),
        "WANDB_SILENT": "true",
        **import_variables(),
        **(target.environment() if target else {}),
    }


def clean_own_environment() -> None:
    """The same for the client in this very process; before it is imported."""
    without = _without_a_run(os.environ)
    for name in [name for name in os.environ if name not in without]:
        del os.environ[name]


def _without_a_run(inherited: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in inherited.items()
        if not name.startswith("WANDB_") or (value and name in OF_THE_SERVER)
    }
