"""Keys, values and attention of every layer in one pass over some text.

Legend: `B` sequences, `T` tokens of each, `W` chosen queries, `H` query heads, `G` KV heads, `K` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ..attention import Attention, attend
from ..model import Decoder
from ..positions import rotate
from ..tokens import Tokens


@dataclass(frozen=True)
class LayerPass:
    """What a layer attended to in a pass.

    keys, values: `[B, G, T, K]`, as attention reads them (keys rotated), of the layer's owner. unrotated: its own keys
    before rotation; None where they do not rotate, or are another layer's. queries: `[B, H, T, K]`, rotated.
    """

    keys: Tensor
    values: Tensor
    unrotated: Tensor | None
    queries: Tensor
    tokens: Tokens
    attention: Attention

    def weights(self, chosen_W: Tensor) -> Tensor:
        """Attention of some queries, `[B, G, W, T]`: of each KV head, the mean of those of its query heads."""
        mask = self.tokens.mask
        if mask is None:
            places_T = torch.arange(self.keys.shape[2], device=self.keys.device)
            mask = (places_T <= places_T[:, None])[None, None]
        found: list[Tensor] = []
        attention, queries = self.attention, self.queries[:, :, chosen_W]
        attend(queries, self.keys, self.values, mask[:, :, chosen_W], attention.factor, attention.cap, found)
        return found[0].unflatten(1, (self.keys.shape[1], -1)).mean(2)


@dataclass(frozen=True)
class Pass:
    """layers: what each layer attended to. hidden: what came before each layer, and behind the last norm."""

    layers: list[LayerPass]
    hidden: list[Tensor]


@torch.inference_mode()
def record(decoder: Decoder, ids_BT: Tensor) -> Pass:
    """One pass over whole sequences, without padding. The decoder stays as it is."""
    normed: dict[tuple[int, str], Tensor] = {}
    calls: list[tuple[tuple[Any, ...], Any]] = []
    hidden: list[Tensor] = []

    def keep(place: tuple[int, str]) -> Callable[..., None]:
        return lambda _module, _given, out: normed.__setitem__(place, out)

    attentions = [cast(Attention, block.attention) for block in decoder.blocks]
    with ExitStack() as hooks:
        for layer, attention in enumerate(attentions):
            for name in ("q_norm", "k_norm"):
                if hasattr(attention, name):
                    hooks.callback(getattr(attention, name).register_forward_hook(keep((layer, name))).remove)
            hooks.callback(
                attention.register_forward_hook(lambda _module, given, out: calls.append((given, out))).remove
            )
        decoder(ids_BT, hidden_states=hidden)
    layers = []
    for layer, (attention, (given, (_, (keys, values)))) in enumerate(zip(attentions, calls, strict=True)):
        tokens: Tokens = given[3]
        queries = rotate(_heads(normed[layer, "q_norm"], attention), tokens.query_angles)
        own = "k" in attention.owns and tokens.query_angles is not None
        unrotated = _heads(normed[layer, "k_norm"], attention) if own else None
        layers.append(LayerPass(keys, values, unrotated, queries, tokens, attention))
    return Pass(_with_owners_keys(layers, decoder.layout.kv_source_layers), hidden)


def _heads(normed: Tensor, attention: Attention) -> Tensor:
    """`[B, heads, T, K]` of what a norm gave, which is split into heads already where it norms each of them."""
    return normed if normed.dim() == 4 else normed.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)


def _with_owners_keys(layers: list[LayerPass], sources: tuple[int, ...]) -> list[LayerPass]:
    return [replace(each, unrotated=layers[source].unrotated) for each, source in zip(layers, sources, strict=True)]
