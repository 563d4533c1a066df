"""A family's named weights ↔ the decoder's, both ways, from the tables.

Legend: `D` width, `H` query heads, `K` head width.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..layout import KVLayout
from ..shape import DecoderShape
from .files import WeightInfo, differ
from .tables import OWN, Family

if TYPE_CHECKING:
    from torch import Tensor

    from ..hf import MLKVForCausalLM

    State = dict[str, Tensor]


BUFFERS = re.compile(r"(^|\.)(attention|attn)\.(bias|masked_bias)$|(^|\.)rotary_emb\.\w+$")
"""Masks and rotary tables that older files have besides the weights."""
FLOATS = ("float64", "float32", "float16", "bfloat16")
_PLANES = ".attention.planes"
"""Indices of rotary planes, which a latent of ours may have besides its weights."""
_LISTED = 5
"""Names of weights in a message at most."""


def own_names(found: Mapping[str, WeightInfo], family: Family) -> dict[str, str]:
    """Weights' names without prefixes, with `head` for the output head → their names in the files; buffers left out.

    Raises ValueError for a weight that the files hold twice, and for integers and 8-bit floats: quantised weights mean
    nothing without their scales.
    """
    heads = {f"{name}.weight" for name in family.heads}
    names: dict[str, str] = {}
    for key, weight in found.items():
        if BUFFERS.search(key):
            continue
        prefix = next((p for p in family.prefixes if key.startswith(p)), "")
        name = "head.weight" if key in heads else key.removeprefix(prefix)
        if name in names:
            raise ValueError(f"{key}: the files hold this weight twice, under two names")
        if weight.dtype not in FLOATS and not (family is OWN and name.endswith(_PLANES)):
            raise ValueError(
                f"{key} is {weight.dtype}: quantised weights are not supported; save the model in one of "
                f"{', '.join(FLOATS)}"
            )
        names[name] = key
    return names


def check_weights(found: Mapping[str, WeightInfo], family: Family, shape: DecoderShape, layout: KVLayout) -> None:
    """The one rule for which weights a checkpoint may have, for plans and for loading. Raises ValueError that names the
    first that is missing, unknown or misshapen, and for a tied head that is not its embedding."""
    names, expected = own_names(found, family), expected_shapes(family, shape, layout)
    embed = f"{family.names['embed']}.weight"
    if shape.tied and "head.weight" in names:
        expected["head.weight"] = expected[embed]
        if embed not in names:
            del expected[embed]  # the head stands for it
        elif differ(found[names[embed]], found[names["head.weight"]]):
            raise ValueError(_untied(embed))
    for name, size in expected.items():
        if name not in names:
            tied = " (tie_word_embeddings = false: true would take the embedding)" if name == "head.weight" else ""
            raise ValueError(f"missing weight: {name}{tied}")
        if found[names[name]].shape != size:
            raise ValueError(f"{name} has shape {[*found[names[name]].shape]}, the config says {[*size]}")
    if unknown := sorted(set(names) - set(expected)):
        more = f" and {len(unknown) - _LISTED} others" if unknown[_LISTED:] else ""
        raise ValueError(f"unknown weights: {', '.join(unknown[:_LISTED])}{more}")


def expected_shapes(family: Family, shape: DecoderShape, layout: KVLayout) -> dict[str, tuple[int, ...]]:
    """The family's weights, by name without prefix, as its files hold them."""
    shapes: dict[str, tuple[int, ...]] = {}
    for key, size in shape.weights(layout).items():
        if key == "head.weight" and shape.tied:
            continue
        name = _their_name(key, family)
        shapes[name] = (shapes[name][0] + size[0] if name in shapes else size[0], *size[1:])
    return {name: size[::-1] if _is_transposed(name, size, family) else size for name, size in shapes.items()}


def _untied(embed: str) -> str:
    return (
        f"tie_word_embeddings = True: but the files hold an output head that differs from {embed}; "
        "say false in config.json to use it"
    )


def add_prefix(state: State, family: Family, keys: set[str]) -> State:
    """`own_names` backwards; `keys` has the name of the output head."""
    head = next(f"{name}.weight" for name in family.heads if f"{name}.weight" in keys)
    return {head if key == "head.weight" else family.prefixes[0] + key: tensor for key, tensor in state.items()}


def checked_weights(files: State, family: Family, shape: DecoderShape, layout: KVLayout) -> State:
    """The weights of a family's files, by name without prefix. Raises ValueError like `check_weights`."""
    found = {name: WeightInfo.of(tensor) for name, tensor in files.items()}
    check_weights(found, family, shape, layout)
    theirs = {name: files[key] for name, key in own_names(found, family).items()}
    if shape.tied:
        _tie_head(theirs, family)
    return theirs


def from_family(theirs: State, family: Family, model: MLKVForCausalLM) -> State:
    """Our decoder's state from a family's weights as `checked_weights` gives them."""
    sizes = model.shape.weights(model.layout)
    ours: State = {}
    for name, keys in _parts(sizes, family).items():
        tensor = _transpose_conv1d(theirs[name], name, family)
        ours |= zip(keys, _split(tensor, [sizes[key][0] for key in keys], family, model.shape.heads), strict=True)
    return {key: ours[key] for key in sizes}


def _tie_head(theirs: State, family: Family) -> None:
    """Set head and embedding to the one tensor of which older files have either, or both. Where the two differ,
    transformers does not tie them."""
    name = f"{family.names['embed']}.weight"
    embed = theirs.get(name, theirs.get("head.weight"))
    assert embed is not None, "check_weights wants one of them"
    if not theirs.get("head.weight", embed).to(embed.dtype).equal(embed):
        raise ValueError(_untied(name))
    theirs |= {name: embed, "head.weight": embed}


def to_family_state(ours: State, family: Family, heads: int) -> State:
    """`from_family` backwards: family weights without prefixes."""
    fused = {name: _fuse([ours[key] for key in keys], family, heads) for name, keys in _parts(ours, family).items()}
    return {name: _transpose_conv1d(tensor, name, family) for name, tensor in fused.items()}


def _parts(keys: Iterable[str], family: Family) -> dict[str, list[str]]:
    """Each weight of a family and those of ours that it holds, in the order in which they are fused: a state dict has q
    before k before v, and gate before up."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        parts.setdefault(_their_name(key, family), []).append(key)
    return parts


def _their_name(key: str, family: Family) -> str:
    """`blocks.3.attention.q.bias` → the weight that holds it."""
    if not key.startswith("blocks."):
        module, kind = key.rsplit(".", 1)
        return f"{family.names.get(module, module)}.{kind}"
    _, layer, module_kind = key.split(".", 2)
    module, kind = module_kind.rsplit(".", 1)
    return f"{family.names['blocks']}.{layer}.{family.names[f'.{module}']}.{kind}"


def _transpose_conv1d(tensor: Tensor, name: str, family: Family) -> Tensor:
    """Transpose the matrices that the family stores as `[in, out]`; its own inverse."""
    return tensor.t().contiguous() if _is_transposed(name, tensor.shape, family) else tensor


def _is_transposed(name: str, size: Sequence[int], family: Family) -> bool:
    return family.transposed and name.startswith(f"{family.names['blocks']}.") and len(size) == 2


def _split(tensor: Tensor, sizes: list[int], family: Family, heads: int) -> Sequence[Tensor]:
    if len(sizes) == 1 or family.fused == "stacked":
        return tensor.split(sizes)
    return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, len(sizes), -1)).unbind(1)]


def _fuse(tensors: list[Tensor], family: Family, heads: int) -> Tensor:
    import torch

    if len(tensors) == 1 or family.fused == "stacked":
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return torch.stack([part.unflatten(0, (heads, -1)) for part in tensors], dim=1).flatten(0, 2)
