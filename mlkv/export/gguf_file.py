"""Export to a GGUF file for llama.cpp, by the writer of the `gguf` package: the converters of llama.cpp refuse
tokenizers that they do not know, such as one trained here.

Legend: `D` width, `H` heads, `K` head width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..families.load import copy_companions
from ..shape import DecoderShape
from .checkpoint import Checkpoint
from .tokenizers import add_tokenizer, unknown_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.gguf"
INSTALL = "pip install 'mlkv[gguf]'"
NAMES = {
    "embed": "token_embd",
    "positions": "position_embd",
    "norm": "output_norm",
    "head": "output",
    ".attention_norm": "attn_norm",
    ".attention.qkv": "attn_qkv",
    ".attention.q": "attn_q",
    ".attention.k": "attn_k",
    ".attention.v": "attn_v",
    ".attention.o": "attn_output",
    ".mlp_norm": "ffn_norm",
    ".mlp.gate": "ffn_gate",
    ".mlp.up": "ffn_up",
    ".mlp.down": "ffn_down",
}
"""Our module → GGUF's tensor; those of a layer start with a dot."""


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's. needs: the values that a shape's fields must have. interleaved: rotation pairs dimensions 2i
    and 2i + 1. fused: queries, keys and values are one matrix, one after the other."""

    name: str
    needs: Mapping[str, tuple[object, ...]]
    interleaved: bool = False
    fused: bool = False

    def lacks(self, shape: DecoderShape) -> list[str]:
        """The fields of a shape that it does not compute."""
        found = [name for name, values in self.needs.items() if getattr(shape, name) not in values]
        return found + [f.name for f in fields(shape) if f.name not in _READ and getattr(shape, f.name) != f.default]


_READ = frozenset(
    {
        *("vocab_size", "width", "layers", "heads", "head_dim", "mlp_width", "context", "norm", "norm_eps"),
        *("activation", "gated_mlp", "attention_bias", "mlp_bias", "parallel_residual", "positions"),
        *("rotary_fraction", "rotary_base", "position_offset", "tied", "init_std"),
    }
)
"""Fields of a shape that are written, or that an architecture's `needs` decide."""
_GELU = ("gelu", "gelu_new")
"""llama.cpp computes the tanh form for both; they differ by up to 5e-4 of an activation."""
ARCHITECTURES = (
    Architecture(
        "llama",
        {
            "norm": ("rmsnorm",),
            "activation": ("silu",),
            "gated_mlp": (True,),
            "parallel_residual": (False,),
            "positions": ("rotary",),
            "rotary_fraction": (1.0,),
            "position_offset": (0,),
        },
        interleaved=True,
    ),
    Architecture(
        "gptneox",
        {
            "norm": ("layernorm",),
            "activation": _GELU,
            "gated_mlp": (False,),
            "attention_bias": (True,),
            "mlp_bias": (True,),
            "positions": ("rotary",),
            "position_offset": (0,),
        },
        fused=True,
    ),
    Architecture(
        "gpt2",
        {
            "norm": ("layernorm",),
            "activation": _GELU,
            "gated_mlp": (False,),
            "attention_bias": (True,),
            "mlp_bias": (True,),
            "parallel_residual": (False,),
            "positions": ("learned",),
            "position_offset": (0,),
        },
        fused=True,
    ),
)


def refusal(checkpoint: Checkpoint) -> str | None:
    layout, shape = checkpoint.layout, checkpoint.shape
    if layout.latent:
        return "llama.cpp's latents belong to other architectures"
    if layout.apart:
        return "a GGUF file has the same sources and head counts for keys and values"
    if layout.reads_above:
        return (
            "llama.cpp computes layers once, from the lowest, and some read the keys and values of a layer above them"
        )
    if checkpoint.shares:
        return "a GGUF file says for no layer that it reads another one's keys and values"
    if len(set(layout.kv_heads)) > 1:
        return "llama.cpp refuses another number of KV heads in each layer"
    nearest = min(ARCHITECTURES, key=lambda architecture: len(architecture.lacks(shape)))
    if lacking := nearest.lacks(shape):
        return f"llama.cpp has no such model (nearest: {nearest.name}, but for {', '.join(lacking)})"
    if nearest.fused and shape.heads * shape.head_dim != shape.width:
        return f"llama.cpp's {nearest.name} has heads of width / heads = {shape.width}/{shape.heads}"
    return unknown_tokenizer(checkpoint.path)


def write(checkpoint: Checkpoint, out: Path) -> None:
    """Raises ValueError for weights that are damaged, and where the package gguf is missing."""
    if find_spec("gguf") is None:
        raise ValueError(f"--to gguf: needs the package gguf: {INSTALL}")
    from gguf import GGUFWriter

    from ..hf import load_checked

    model = load_checked(checkpoint.path)
    architecture = next(row for row in ARCHITECTURES if not row.lacks(checkpoint.shape))
    writer = GGUFWriter(out / FILE, architecture.name)
    _add_shape(writer, checkpoint, architecture)
    add_tokenizer(writer, checkpoint)
    for name, weight in _tensors(model.model.state_dict(), checkpoint, architecture).items():
        _add_tensor(writer, name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    copy_companions(checkpoint.path, out)


def _add_shape(writer: Any, checkpoint: Checkpoint, architecture: Architecture) -> None:
    shape = checkpoint.shape
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.mlp_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(checkpoint.layout.kv_heads[0])
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_vocab_size(shape.vocab_size)
    if shape.norm == "rmsnorm":
        writer.add_layer_norm_rms_eps(shape.norm_eps)
    else:
        writer.add_layer_norm_eps(shape.norm_eps)
    if shape.positions == "rotary":
        writer.add_rope_dimension_count(shape.rotated_dims)
        writer.add_rope_freq_base(shape.rotary_base)
    if architecture.name == "gptneox":
        writer.add_parallel_residual(shape.parallel_residual)


def _tensors(state: Mapping[str, Tensor], checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Tensor]:
    """GGUF's tensors by name, of a decoder's weights."""
    import torch

    shape = checkpoint.shape
    found: dict[str, Tensor] = {}
    for key, weight in state.items():
        if key == "head.weight" and shape.tied and not architecture.fused:
            continue  # llama.cpp takes the embedding
        layer, module, kind = _split(key)
        if architecture.interleaved and module in (".attention.q", ".attention.k"):
            weight = _interleave(weight, shape.head_dim)
        if architecture.fused and module in (".attention.q", ".attention.k", ".attention.v"):
            name = f"blk.{layer}.{NAMES['.attention.qkv']}.{kind}"
            weight = torch.cat([found[name], weight]) if name in found else weight
        else:
            name = f"{f'blk.{layer}.' if layer else ''}{NAMES[module]}.{kind}"
        found[name] = weight
    return found


def _split(key: str) -> tuple[str, str, str]:
    """`blocks.3.attention.q.bias` → `3`, `.attention.q`, `bias`; of a weight of no layer the first is empty."""
    name, kind = key.rsplit(".", 1)
    if not name.startswith("blocks."):
        return "", name, kind
    _, layer, module = name.split(".", 2)
    return layer, f".{module}", kind


def _interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Rows in llama.cpp's order: of a head's two halves, which rotate together, one from each in turn."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _add_tensor(writer: Any, name: str, weight: Tensor) -> None:
    """Matrices in their own type, all else in float32, as llama.cpp wants it."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if weight.dtype == torch.bfloat16 and weight.dim() > 1:
        packed = quantize(weight.float().numpy(), GGMLQuantizationType.BF16)
        writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, (weight if weight.dim() > 1 else weight.float()).numpy())
