"""From a command line that Hydra has read to the same line of `mlkv sweep`."""

from __future__ import annotations

from typing import Any

from sweeps.cli import main


def sweep(hydra: Any, overrides: list[str]) -> None:
    """`hydra` is Hydra's own configuration; its `--config-dir` is handed on."""
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    main(["sweep", *overrides, *(word for path in given for word in ("--config-dir", path))])
