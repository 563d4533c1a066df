"""Plain Hydra: `python -m sweeps layout=mqa`, with `-m` a multirun; both go through the planner of `mlkv sweep`."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sweeps.cli import main as mlkv
from sweeps.code import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> None:
    mlkv(["sweep", *HydraConfig.get().overrides.task])


if __name__ == "__main__":
    main()
    sys.exit(0)
