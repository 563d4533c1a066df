"""What it costs when a layer reads the keys and values of another, with no weight changed.

Layer `j` attends with its own queries to the keys and values that layer `i` computed on the same text, and so do the
layers that read `j`'s; all layers above compute on from there. Where `i` is above `j`, its keys and values are those of
an undisturbed pass before, since one pass cannot have them: it is then no cache that a decoder could keep, but it says
what is lost by their being another layer's.

Legend: `B` sequences, `T` tokens of each, `D` width, `V` vocabulary, `L` layers.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..layout import KINDS, Kind
from ..model import Decoder
from ..tokens import KeysValues
from .recording import Pass


@torch.inference_mode()
def nats(decoder: Decoder, hidden_BTD: Tensor, ids_BT: Tensor, counted_BT: Tensor) -> Tensor:
    """`[B]`, float64: nats of each sequence's counted tokens. `hidden_BTD`: behind the last norm."""
    logits_BTV, targets_BT = decoder.logits(hidden_BTD)[:, :-1], ids_BT[:, 1:]
    losses = functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="none")
    return losses.view_as(targets_BT).where(counted_BT, 0.0).double().sum(-1)


@torch.inference_mode()
def excess(decoder: Decoder, done: Pass, ids_BT: Tensor, counted_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Nats that each sequence takes `[B]`, and how many more where layer `j` reads what layer `i` computed,
    `[B, L, L]`."""
    base_B = nats(decoder, done.hidden[-1], ids_BT, counted_BT)
    layers = len(done.layers)
    excess_BLL = base_B.new_zeros(len(ids_BT), layers, layers)
    for reader in range(layers):
        for source in range(layers):
            if any(_source(decoder, kind, reader) != _source(decoder, kind, source) for kind in KINDS):
                hidden_BTD = _reading(decoder, done, reader, source)
                excess_BLL[:, reader, source] = nats(decoder, hidden_BTD, ids_BT, counted_BT) - base_B
    return base_B, excess_BLL


def _source(decoder: Decoder, kind: Kind, layer: int) -> int:
    return decoder.layout.part(kind).kv_source_layers[layer]


def _reading(decoder: Decoder, done: Pass, reader: int, source: int) -> Tensor:
    """Hidden states `[B, T, D]` behind the last norm, where `reader` reads what `source` computed in `done`."""
    x_BTD = done.hidden[reader]
    used: dict[int, KeysValues] = {i: (each.keys, each.values) for i, each in enumerate(done.layers[:reader])}
    for layer in range(reader, len(done.layers)):
        tokens = done.layers[layer].tokens
        given: list[Tensor | None] = []
        for place, kind in enumerate(KINDS):
            owner = _source(decoder, kind, layer)
            if reader in (layer, owner):
                moved = done.layers[source]
                given.append((moved.keys, moved.values)[place])
                if kind == "k":  # queries turn as the keys do that they meet
                    tokens = replace(tokens, query_angles=moved.tokens.query_angles)
            else:
                given.append(None if owner == layer else used[owner][place])
        x_BTD, used[layer] = decoder.blocks[layer](x_BTD, tuple(given), tokens)
    return decoder.norm(x_BTD)
