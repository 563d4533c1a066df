"""Runs `mlkv sweep` with the command line that a Hydra program was started with."""

from __future__ import annotations

from typing import Any

from sweeps.cli import main


def sweep(hydra: Any, overrides: list[str]) -> None:
    """`hydra` is Hydra's own configuration; `--config-dir` comes from it."""
    paths = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    main(["sweep", *overrides, *(word for path in paths for word in ("--config-dir", path))])
