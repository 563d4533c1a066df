"""A family's named weights ↔ the decoder's, both ways, from the tables.

Legend: `D` width, `H` query heads, `K` head width.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .tables import Family

if TYPE_CHECKING:
    from torch import Tensor

    from ..hf import MLKVForCausalLM

    State = dict[str, Tensor]


BUFFERS = re.compile(r"(^|\.)(attention|attn)\.(bias|masked_bias)$|(^|\.)rotary_emb\.\w+$")
"""Masks and rotary tables that older files have besides the weights."""


def remove_prefix(state: State, family: Family) -> State:
    """Without prefixes and buffers, and with `head` as the name of the output head. Raises ValueError for a weight that
    the files hold twice, and for integers and 8-bit floats: quantised weights mean nothing without their scales."""
    heads = {f"{name}.weight" for name in family.heads}
    bare: State = {}
    for key, tensor in state.items():
        if BUFFERS.search(key):
            continue
        prefix = next((p for p in family.prefixes if key.startswith(p)), "")
        name = "head.weight" if key in heads else key.removeprefix(prefix)
        if name in bare:
            raise ValueError(f"{key}: the files hold this weight twice, under two names")
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            raise ValueError(
                f"{key} is {str(tensor.dtype).removeprefix('torch.')}: quantised weights are not supported"
            )
        bare[name] = tensor
    return bare


def add_prefix(state: State, family: Family, keys: set[str]) -> State:
    """`remove_prefix` backwards; `keys` has the name of the output head."""
    head = next(f"{name}.weight" for name in family.heads if f"{name}.weight" in keys)
    return {head if key == "head.weight" else family.prefixes[0] + key: tensor for key, tensor in state.items()}


def from_family(theirs: State, family: Family, model: MLKVForCausalLM) -> State:
    """Our decoder's state from family weights without prefixes. Raises ValueError if any is missing, unknown or of a
    wrong shape."""
    ours, used = model.model.state_dict(), set()
    for key, tensor in ours.items():
        if key == "head.weight" and model.shape.tied:
            ours[key] = _tied_head(theirs, family)
            used.add(key)
            continue
        name, part = _their_name(key, family)
        if name not in theirs:
            raise ValueError(f"missing weight: {name} (for {key})")
        used.add(name)
        ours[key] = _split_qkv(_transpose_conv1d(theirs[name], name, family), family, model.shape.heads, part)
        if ours[key].shape != tensor.shape:
            raise ValueError(f"{name} has shape {list(ours[key].shape)}, the config says {list(tensor.shape)}")
    if unknown := sorted(set(theirs) - used):
        raise ValueError(f"unknown weights: {', '.join(unknown)}")
    return ours


def _tied_head(theirs: State, family: Family) -> Tensor:
    """The embedding. Older files repeat it as the head; where the two differ, transformers does not tie them."""
    name = f"{family.names['embed']}.weight"
    embed = theirs[name]
    if not theirs.get("head.weight", embed).to(embed.dtype).equal(embed):
        raise ValueError(f"tie_word_embeddings = True: but the files hold an output head that differs from {name}")
    return embed


def to_family_state(ours: State, family: Family, heads: int) -> State:
    """`from_family` backwards: family weights without prefixes."""
    parts: dict[str, list[Tensor]] = {}
    for key, tensor in ours.items():
        # A state dict lists q before k before v, which is the order in which they are fused.
        parts.setdefault(_their_name(key, family)[0], []).append(tensor)
    return {name: _transpose_conv1d(_fuse_qkv(tensors, family, heads), name, family) for name, tensors in parts.items()}


def _their_name(key: str, family: Family) -> tuple[str, str | None]:
    """`blocks.3.attention.q.bias` → the weight that holds it and, where that is fused, the part (`q`) that it is."""
    if not key.startswith("blocks."):
        module, kind = key.rsplit(".", 1)
        return f"{family.names.get(module, module)}.{kind}", None
    _, layer, module_kind = key.split(".", 2)
    module, kind = module_kind.rsplit(".", 1)
    part = module[-1] if family.fused and module in ("attention.q", "attention.k", "attention.v") else None
    theirs = family.names[".attention.qkv" if part else f".{module}"]
    return f"{family.names['blocks']}.{layer}.{theirs}.{kind}", part


def _transpose_conv1d(tensor: Tensor, name: str, family: Family) -> Tensor:
    """Transpose the matrices that the family stores as `[in, out]`; its own inverse."""
    in_layer = name.startswith(f"{family.names['blocks']}.")
    return tensor.t().contiguous() if family.transposed and in_layer and tensor.dim() == 2 else tensor


def _split_qkv(tensor: Tensor, family: Family, heads: int, part: str | None) -> Tensor:
    if part is None:
        return tensor
    index = "qkv".index(part)
    if family.fused == "stacked":
        return tensor.chunk(3)[index]
    return tensor.unflatten(0, (heads, 3, -1))[:, index].flatten(0, 1)


def _fuse_qkv(tensors: list[Tensor], family: Family, heads: int) -> Tensor:
    import torch

    if len(tensors) == 1:
        return tensors[0]
    if family.fused == "stacked":
        return torch.cat(tensors)
    return torch.stack([part.unflatten(0, (heads, -1)) for part in tensors], dim=1).flatten(0, 2)
