"""Weights that several processes share (torch's FSDP2, through transformers' Trainer): collect them in one process, and
distribute them again. A checkpoint is the same whoever wrote it, so a step may resume with more or fewer processes.

Every process has to call these functions; what they collect is in the first one's memory, and empty in the others.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer
from transformers import TrainingArguments

from ..shape import check_choice

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

UNIT = "Block"
"""The module whose weights are gathered, used and dropped together."""


class FsdpArguments(TypedDict, total=False):
    fsdp: bool
    fsdp_config: dict[str, int | list[str]]


class OptimizerState(TypedDict):
    """As `torch.optim.Optimizer.state_dict()` gives it: parameters by number, in the order of the groups."""

    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


def fsdp_arguments(strategy: str, processes: int) -> FsdpArguments:
    """For TrainingArguments; none for `ddp`, nor for a single process. Raises ValueError for another strategy."""
    check_choice("strategy", strategy, ("ddp", "fsdp"))
    if strategy != "fsdp" or processes == 1:
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [UNIT]}}


def enable(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Make accelerate share weights, which on a CPU it skips silently.

    With `bf16` it computes in bf16 and still sums gradients over processes in fp32: a sum in bf16 loses the terms that
    are less than 1/256 of it.
    """
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if args.bf16 else None
    plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args, mixed_precision_policy=policy)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    weights: Any = get_model_state_dict(model, options=_WHOLE)
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give every process its share of `weights`. Raises RuntimeError unless these are exactly the model's."""
    set_model_state_dict(model, {**weights}, options=_WHOLE)


def whole_state(model: nn.Module, optimizer: Optimizer) -> OptimizerState:
    """The optimiser's state as one process would save it."""
    named: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    names = [name for group in named.get("param_groups", ()) for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    return {
        "state": {number[name]: state for name, state in named.get("state", {}).items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in named.get("param_groups", ())
        ],
    }


def load_state(model: nn.Module, optimizer: Optimizer, saved: OptimizerState) -> None:
    """Give every process its share of what `whole_state`, or a process that trained alone, saved."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    named: Any = {
        "state": {names[i]: state for i, state in saved["state"].items()},
        "param_groups": [{**group, "params": [names[i] for i in group["params"]]} for group in saved["param_groups"]],
    }
    set_optimizer_state_dict(model, optimizer, named, options=_WHOLE)
