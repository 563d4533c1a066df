"""A Hydra sweeper that hands a multirun to mlkv's planner: `-m` shares steps, skips what is done and resumes."""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

NODE = {"_target_": "hydra_plugins.mlkv_sweeper.mlkv_sweeper.MlkvSweeper"}
ConfigStore.instance().store(group="hydra/sweeper", name="mlkv", node=NODE, provider="mlkv")


class MlkvSweeper(Sweeper):
    """Needs nothing of Hydra's launcher: the plan decides what runs, where and when."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config = config

    def sweep(self, arguments: list[str]) -> Any:
        from sweeps.cli.plain_hydra import sweep

        sweep(self._config.hydra, arguments)
