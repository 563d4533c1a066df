"""Every cell of family × layout against transformers' own model of the family.

Transformers' models of these families share nothing. But each asks its cache for the keys and values that it attends
to, so a cache that hands a reader those of its owner makes the family's own code compute the layout. It has a key and a
value head for each query head; those of one of our heads are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mlkv.families.config import shape_of
from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, Latent, mha
from mlkv.merges import MERGES, approximations, merge_named
from mlkv.patterns import make
from mlkv.shape import DecoderShape
from tests.support.matrix import FAMILY_CONFIGS, HEADS, LAYERS, LAYOUTS, TRAPS, VOCAB

IDS = torch.randint(1, VOCAB, (2, 13), generator=torch.Generator().manual_seed(2))
State = dict[str, Tensor]
PER_HEAD = (".attention.k.", ".attention.v.", ".attention.k_norm.")


def assert_unchanged(model: MLKVForCausalLM, change: Callable[[State], State], ids: Tensor) -> None:
    """That a model computes the same with the weights that `change` makes of its own, to 5e-6 of the largest logit.

    In double precision: the matrices that come from a calibration are of single precision, which alone costs 2.1e-6 at
    most over all cells; logits of single precision differ by 1.1e-5 on some processors, and by less on others.
    """
    model = deepcopy(model).double()
    changed = deepcopy(model)
    changed.model.load_state_dict(change(model.model.state_dict()))
    logits = model(ids).logits
    torch.testing.assert_close(changed(ids).logits, logits, atol=5e-6 * logits.abs().max().item(), rtol=0)


class KeysValuesOfOwners(DynamicCache):
    """For one pass over a whole text."""

    def __init__(self, layout: KVLayout) -> None:
        super().__init__()
        self.layout = layout
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.held[layer_idx] = key_states, value_states
        key_owner, value_owner = (part.kv_source_layers[layer_idx] for part in (self.layout.keys, self.layout.values))
        return self.held[key_owner][0], self.held[value_owner][1]


def random_model(shape: DecoderShape, layout: KVLayout) -> MLKVForCausalLM:
    model = MLKVForCausalLM.from_shape(replace(shape, init_std=0.1), layout, seed=3).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # biases and norms are born as zeros and ones, which would hide mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def written_out(ours: MLKVForCausalLM) -> MLKVForCausalLM:
    """The same weights in a model without sharing, whose readers have unused keys and values, and the rotation of their
    owner."""
    layout, shape = ours.layout, ours.shape
    owners = list(enumerate(layout.kv_source_layers))
    shape = replace(
        shape,
        unrotated_layers=tuple(i for i, owner in owners if owner in shape.unrotated_layers),
        local_layers=tuple(i for i, owner in owners if owner in shape.local_layers)
        if shape.local_rotary_base
        else shape.local_layers,
    )
    whole = MLKVForCausalLM.from_shape(shape, mha(shape.layers, shape.heads), seed=0)
    state = whole.model.state_dict()
    for name, weight in ours.model.state_dict().items():
        own = weight
        if any(kind in name for kind in PER_HEAD) and weight.shape != state[name].shape:
            heads = (layout.values if ".attention.v." in name else layout.keys).heads_of(int(name.split(".")[1]))
            own = weight.unflatten(0, (heads, -1)).repeat_interleave(shape.heads // heads, 0).flatten(0, 1)
        state[name] = own
    whole.model.load_state_dict(state)
    return whole.eval()


@torch.no_grad()
def error(config: dict[str, Any], layout: KVLayout) -> float:
    """The largest difference of logits, as a share of the largest logit, of weights at which rounding stays small."""
    shape = shape_of(config)
    if shape.local_rotary_base:  # there a layer has the window and the rotation, or neither: compare the rotation alone
        shape = replace(shape, window=IDS.shape[1])
    ours = random_model(shape, layout)
    theirs = to_family(written_out(ours), config["model_type"]).eval()
    expected = theirs(IDS, past_key_values=KeysValuesOfOwners(layout), use_cache=True).logits
    return float((ours(IDS).logits - expected).abs().max() / expected.abs().max())


def errors_table() -> str:
    rows = [f"| | {' | '.join(LAYOUTS)} |", "|---" * (len(LAYOUTS) + 1) + "|"]
    for name, config in (FAMILY_CONFIGS | TRAPS).items():
        cells = [f"{error(config, layout):.0e}" for layout in LAYOUTS.values()]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


WITHIN_LAYERS, ACROSS_LAYERS = make("even", LAYERS, HEADS, LAYERS, 1), make("even", LAYERS, HEADS, 2, HEADS)


def merges_table() -> str:
    """Which merge is exact before heads are averaged, for which families: the table of docs/conversion.md."""
    framed = [name for name in MERGES if merge_named(name).frames]
    merges = [name for name in MERGES if name not in framed and name != "random"], framed
    families: dict[tuple[str, ...], list[str]] = {}
    for config in FAMILY_CONFIGS.values():
        shape = shape_of(config)
        cells = (*(_exactness(shape, names[0]) for names in merges), _latent(shape))
        families.setdefault(cells, []).append(f"`{config['model_type']}`")
    head = ["families", *(", ".join(f"`{name}`" for name in names) for names in merges), "latent"]
    rows = [[", ".join(dict.fromkeys(names)), *cells] for cells, names in families.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def _exactness(shape: DecoderShape, merge: str) -> str:
    whole = mha(LAYERS, HEADS)
    if approximations(shape, whole, WITHIN_LAYERS, merge):
        return "approximate"
    return "exact within a layer" if approximations(shape, whole, ACROSS_LAYERS, merge) else "exact"


def _latent(shape: DecoderShape) -> str:
    try:
        shape.check_latent(Latent((1,) * LAYERS, shape.rotated_dims))
    except ValueError:
        return "refused"
    return "exact"
