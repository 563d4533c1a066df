"""The kinds of exports, a row each. Listing them loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..registry import Registry, function_of
from . import usage

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

Refusal = Callable[["Checkpoint"], "str | None"]
Write = Callable[["Checkpoint", Path], None]


@dataclass(frozen=True)
class Target:
    """A kind of export.

    title: what it is, in a few words. refusal: why it cannot hold a checkpoint, or None where it can. write: makes the
    files in an empty directory. Both may be named as `module:function`, so that importing the module waits until they
    are called. usage: what the model card says about loading it, in Markdown, with `{name}` for the directory or the
    repository.
    """

    title: str
    refusal: str | Refusal
    write: str | Write
    usage: str

    def refuses(self, checkpoint: Checkpoint) -> str | None:
        return function_of(self.refusal)(checkpoint)

    def writes(self, checkpoint: Checkpoint, out: Path) -> None:
        function_of(self.write)(checkpoint, out)


TARGETS: Registry[Target] = Registry(
    "target",
    {
        "transformers": Target(
            "a directory that AutoModelForCausalLM opens with trust_remote_code=True",
            "mlkv.export.transformers_directory:refusal",
            "mlkv.export.transformers_directory:write",
            usage.TRANSFORMERS,
        ),
        "native": Target(
            "transformers' own model of the family (plain MHA, GQA, MQA)",
            "mlkv.export.native:refusal",
            "mlkv.export.native:write",
            usage.NATIVE,
        ),
        "vllm": Target(
            "a model with its plugin for vLLM",
            "mlkv.export.vllm_plugin:refusal",
            "mlkv.export.vllm_plugin:write",
            usage.VLLM,
        ),
        "gguf": Target(
            "a GGUF file for llama.cpp (plain MHA, GQA, MQA)",
            "mlkv.export.gguf_file:refusal",
            "mlkv.export.gguf_file:write",
            usage.GGUF,
        ),
    },
)


def choose(name: str, checkpoint: Checkpoint) -> Target:
    """The target called `name`. Raises ValueError for an unknown one, and for one that cannot hold the checkpoint,
    with those that can."""
    target = TARGETS.choose(name)
    if reason := target.refuses(checkpoint):
        others = [other for other, row in TARGETS.items() if row.refuses(checkpoint) is None]
        raise ValueError(f"--to {name}: {reason}; this checkpoint can be exported --to {', '.join(others)}")
    return target
