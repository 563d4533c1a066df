"""Plain Hydra: `python -m sweeps layout=mqa`, with `-m` a multirun; both go through the planner of `mlkv sweep`."""

from __future__ import annotations

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from sweeps.cli.plain_hydra import sweep
from sweeps.store.code import CONF


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def main(config: DictConfig) -> None:
    sweep(HydraConfig.get(), list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    main()
