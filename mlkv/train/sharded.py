"""Weights of which each process of a training holds a share (torch's FSDP2, by way of transformers' Trainer), gathered
and dealt out again: a checkpoint is the same whoever wrote it, so a step may go on with other processes.

Every process has to call these functions; what they gather is in the first one's memory, and empty in the others.
"""

from __future__ import annotations

from typing import Any

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


def fsdp_arguments(strategy: str, processes: int) -> dict[str, Any]:
    """What TrainingArguments are told. One process has no one to share with. Raises ValueError for another strategy."""
    check_choice("strategy", strategy, ("ddp", "fsdp"))
    if strategy != "fsdp" or processes == 1:
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [UNIT]}}


def enable(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Have accelerate share weights: on a CPU it leaves that out without a word. Computes in bf16 where `args` say so,
    and sums gradients in fp32 all the same."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if args.bf16 else None
    plugin = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args, mixed_precision_policy=policy)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    weights: Any = get_model_state_dict(model, options=_WHOLE)
    return weights


def load_weights(model: nn.Module, weights: dict[str, Any]) -> None:
    """Raises RuntimeError unless these are exactly the model's."""
    set_model_state_dict(model, weights, options=_WHOLE)


def whole_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's state as one process would save it: parameters by number, in the order of its groups."""
    named: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    names = [name for group in named.get("param_groups", ()) for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    return {
        "state": {number[name]: state for name, state in named.get("state", {}).items()},
        "param_groups": [
            {**group, "params": [number[name] for name in group["params"]]} for group in named.get("param_groups", ())
        ],
    }


def load_state(model: nn.Module, optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """What `whole_state` gave, or a process that trained alone."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    names = [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    named: Any = {
        "state": {names[i]: state for i, state in saved["state"].items()},
        "param_groups": [{**group, "params": [names[i] for i in group["params"]]} for group in saved["param_groups"]],
    }
    set_optimizer_state_dict(model, optimizer, named, options=_WHOLE)
