"""Export to a GGUF file for llama.cpp, by the writer of the `gguf` package: the converters of llama.cpp refuse
tokenizers that they do not know, such as one trained here.

Legend: `D` width, `H` heads, `K` head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
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
    ".attention.q_norm": "attn_q_norm",
    ".attention.k_norm": "attn_k_norm",
}
"""Our module → GGUF's tensor; those of a layer start with a dot."""


Valid = tuple[object, ...] | Callable[[DecoderShape], tuple[object, ...]]
"""The values that a field may have, which others of the shape may decide."""


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    needs: the values that a shape's fields must have.
    computes: further fields that it takes as they are.
    names: tensors that are called otherwise than in NAMES. Several of our modules with one name are one matrix.
    interleaved: rotation pairs dimensions 2i and 2i + 1.
    own_head: the output matrix is written even where it is the embedding.
    writes: fields that its files have, and the writer's method.
    """

    name: str
    needs: Mapping[str, Valid]
    computes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    own_head: bool = False
    writes: Mapping[str, str] = field(default_factory=dict)

    def lacks(self, shape: DecoderShape) -> list[str]:
        """The fields of a shape that it does not compute."""
        found = [name for name, valid in self.needs.items() if getattr(shape, name) not in _values(valid, shape)]
        known = _READ | self.needs.keys() | {*self.computes} | self.writes.keys()
        return found + [f.name for f in fields(shape) if f.name not in known and getattr(shape, f.name) != f.default]


def _values(valid: Valid, shape: DecoderShape) -> tuple[object, ...]:
    return valid(shape) if callable(valid) else valid


_READ = frozenset(
    {
        *("vocab_size", "width", "layers", "heads", "head_dim", "mlp_width", "context", "norm", "norm_eps"),
        *("activation", "gated_mlp", "attention_bias", "mlp_bias", "parallel_residual", "positions"),
        *("rotary_fraction", "rotary_base", "position_offset", "tied", "init_std"),
        # Without a scaling, which an architecture must name, these mean nothing.
        *("rotary_factor", "rotary_context", "rotary_low", "rotary_high"),
    }
)
"""Fields of a shape that are written, or that an architecture's `needs` decide."""
_GELU = ("gelu", "gelu_new")
"""llama.cpp computes the tanh form for both; they differ by up to 5e-4 of an activation."""


def _derived_head_dim(shape: DecoderShape) -> tuple[object, ...]:
    return (shape.width / shape.heads,)


def _own_factor(layers: int) -> Callable[[DecoderShape], tuple[object, ...]]:
    """Gemma 2 and 3: llama.cpp knows the largest by its number of layers, and divides its attention logits by the root
    of width / heads."""
    return lambda shape: (shape.width / shape.heads,) if shape.layers == layers else (0, shape.head_dim)


def _above_zero(name: str) -> Callable[[DecoderShape], tuple[object, ...]]:
    return lambda shape: (getattr(shape, name),) if getattr(shape, name) else ()


def _all_but_every(period: int) -> Callable[[DecoderShape], tuple[object, ...]]:
    return lambda shape: (tuple(i for i in range(shape.layers) if (i + 1) % period),)


def _every(period: int) -> Callable[[DecoderShape], tuple[object, ...]]:
    return lambda shape: (tuple(i for i in range(shape.layers) if not (i + 1) % period),)


_FUSED = {f".attention.{part}": "attn_qkv" for part in "qkv"}
_LINEAR = ("none", "linear")
_LLAMA: Mapping[str, Valid] = {
    "norm": ("rmsnorm",),
    "activation": ("silu",),
    "gated_mlp": (True,),
    "parallel_residual": (False,),
    "positions": ("rotary",),
    "rotary_fraction": (1.0,),
    "position_offset": (0,),
}
_PLAIN: Mapping[str, Valid] = {**_LLAMA, "attention_bias": (False,), "mlp_bias": (False,), "rotary_scaling": _LINEAR}
_GEMMA: Mapping[str, Valid] = {
    **_PLAIN,
    "norm": ("rmsnorm_offset",),
    "activation": ("gelu_new",),
    "tied": (True,),
    "embedding_scale": lambda shape: (shape.width**0.5,),
}
_AROUND = {
    ".attention_out_norm": "post_attention_norm",
    ".mlp_out_norm": "post_ffw_norm",
}
ARCHITECTURES = (
    Architecture("qwen2", {**_PLAIN, "attention_bias": (True,), "output_bias": (False,)}),
    Architecture(
        "llama",
        {**_LLAMA, "rotary_scaling": ("none", "linear", "llama3")},
        computes=("output_bias",),
        interleaved=True,
    ),
    Architecture("qwen3", {**_PLAIN, "qk_norm": ("head",)}),
    Architecture("smollm3", {**_PLAIN, "unrotated_layers": _every(4)}, interleaved=True),
    Architecture(
        "olmo2",
        {**_PLAIN, "qk_norm": ("width",), "norm_place": ("after",), "head_dim": _derived_head_dim},
        names=_AROUND,
        own_head=True,
    ),
    Architecture(
        "phi3",
        {**_PLAIN, "rotary_fraction": lambda shape: (shape.rotary_fraction,), "head_dim": _derived_head_dim},
        names={**_FUSED, ".mlp.gate": "ffn_up"},
    ),
    Architecture(
        "stablelm",
        {
            **_PLAIN,
            "norm": ("layernorm",),
            "rotary_fraction": lambda shape: (shape.rotary_fraction,),
            "attention_bias": (True, False),
            "output_bias": lambda shape: (False,) if shape.attention_bias else (True, False),
            "head_dim": _derived_head_dim,
        },
        own_head=True,
    ),
    Architecture("gemma", _GEMMA),
    Architecture(
        "gemma2",
        {
            **_GEMMA,
            "norm_place": ("around",),
            "attention_scalar": _own_factor(layers=46),
            "attention_cap": _above_zero("attention_cap"),
            "logit_cap": _above_zero("logit_cap"),
            "local_layers": _all_but_every(2),
        },
        names=_AROUND,
        writes={
            "attention_cap": "add_attn_logit_softcapping",
            "logit_cap": "add_final_logit_softcapping",
            "window": "add_sliding_window",
        },
    ),
    Architecture(
        "gemma3",
        {
            **_GEMMA,
            "norm_place": ("around",),
            "qk_norm": ("head",),
            "attention_scalar": _own_factor(layers=62),
            "local_layers": _all_but_every(6),
            "local_rotary_base": (10_000.0,),
        },
        names=_AROUND,
        writes={"window": "add_sliding_window"},
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
            "head_dim": _derived_head_dim,
        },
        names=_FUSED,
        own_head=True,
        writes={"parallel_residual": "add_parallel_residual"},
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
            "head_dim": _derived_head_dim,
        },
        names=_FUSED,
        own_head=True,
    ),
)
"""A shape is written as the first that computes all of it."""


NOT_HELD = {
    "latent": "llama.cpp's latents belong to other architectures",
    "apart": "a GGUF file has the same sources and head counts for keys and values",
    "reads_above": "llama.cpp computes layers once, from the lowest, and some read keys and values of a layer above",
    "shares": "a GGUF file says for no layer that it reads another one's keys and values",
    "unequal": "llama.cpp refuses another number of KV heads in each layer",
}


def refusal(checkpoint: Checkpoint) -> str | None:
    if reason := checkpoint.refused(NOT_HELD):
        return reason
    shape = checkpoint.shape
    nearest = min(ARCHITECTURES, key=lambda architecture: len(architecture.lacks(shape)))
    if lacking := nearest.lacks(shape):
        return f"llama.cpp has no such model (nearest: {nearest.name}, but for {', '.join(lacking)})"
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
    from gguf import LlamaFileType, RopeScalingType

    shape = checkpoint.shape
    file_types = {"bfloat16": LlamaFileType.MOSTLY_BF16, "float16": LlamaFileType.MOSTLY_F16}
    writer.add_file_type(file_types.get(checkpoint.dtype, LlamaFileType.ALL_F32))
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.mlp_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(checkpoint.layout.kv_heads[0])
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_vocab_size(shape.vocab_size)
    if shape.norm != "layernorm":
        writer.add_layer_norm_rms_eps(shape.norm_eps)
    else:
        writer.add_layer_norm_eps(shape.norm_eps)
    if shape.positions == "rotary":
        writer.add_rope_dimension_count(shape.rotated_dims)
        writer.add_rope_freq_base(shape.rotary_base)
    if shape.rotary_scaling == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(shape.rotary_factor)
    for name, add in architecture.writes.items():
        getattr(writer, add)(getattr(shape, name))


def _tensors(state: Mapping[str, Tensor], checkpoint: Checkpoint, architecture: Architecture) -> dict[str, Tensor]:
    """GGUF's tensors by name, of a decoder's weights."""
    import torch

    from ..positions import rotary_frequencies, slowing

    shape, names = checkpoint.shape, {**NAMES, **architecture.names}
    found: dict[str, Tensor] = {}
    for key, weight in state.items():
        if key == "head.weight" and shape.tied and not architecture.own_head:
            continue  # llama.cpp takes the embedding
        layer, module, kind = _split(key)
        if architecture.interleaved and module in (".attention.q", ".attention.k"):
            weight = _interleave(weight, shape.head_dim)
        if shape.norm == "rmsnorm_offset" and module.endswith("norm"):
            weight = weight.float() + 1  # llama.cpp multiplies by what a file says
        name = f"{f'blk.{layer}.' if layer else ''}{names[module]}.{kind}"
        found[name] = torch.cat([found[name], weight]) if name in found else weight
    if shape.rotary_scaling == "llama3":
        found["rope_freqs.weight"] = torch.as_tensor(1 / slowing(shape, rotary_frequencies(shape, shape.rotary_base)))
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
