"""A decoder in which layers read the keys and values of layers above them (LCKV, arXiv 2405.10637; the patterns with
owners in the middle or at the top of their groups in arXiv 2410.14442).

Such a layer waits for one that is computed later. Token by token there is nothing to wait for: it attends to the tokens
before, never to its own (the diagonal of its mask is empty), and theirs are computed already. Tokens that come together
take several passes: the layers that wait for each other (`KVLayout.segments`) run over all tokens with the upper keys
and values of the pass before, zeros in the first one. After `n` passes the first `n` tokens are what they would be one
by one, so as many passes as tokens are exact. LCKV trains and scores with nine, of which the last two have gradients;
what is computed so is an approximation, and the one that the weights have learnt.

The first token has no token before it. It attends to a key and a value of zeros, so that its attention is zero.

Legend: `B` batch, `T` query tokens, `S` keys (cached and new), `G` KV heads, `K` head width, `D` width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from .layout import KVLayout
from .model import Decoder
from .shape import DecoderShape
from .tokens import Keys, KeysValues, KVCache, Tokens


def decoder_of(shape: DecoderShape, layout: KVLayout, keys: Keys = "rotated") -> Decoder:
    """The decoder of a layout: of one in which a layer reads from above, the one that runs such layers."""
    return (IterativeDecoder if layout.reads_above else Decoder)(shape, layout, keys)


class IterativeDecoder(Decoder):
    """A decoder whose layers run in segments, each as often as its layers wait for each other."""

    def _run_layers(self, x_BTD: Tensor, tokens: list[Tokens], hidden_states: list[Tensor] | None) -> Tensor:
        cache, length = tokens[0].cache, x_BTD.shape[1]
        begin = 0 if cache is None else cache.get_seq_length() + 0  # a static cache goes on counting in its own tensor
        trial = None if cache is None else Trial(cache, begin, cache.get_mask_sizes(length, 0)[0])
        tokens = self._tokens_above(tokens, x_BTD, begin)
        tried = [replace(each, cache=trial, attentions=None) for each in tokens]
        kv: dict[int, KeysValues] = {}
        for segment in self.layout.segments:
            passes = self.layout.passes(length) if len(segment) > 1 else 1
            for owner in self._read_from_below(segment):
                kv[owner] = self._zeros(x_BTD, owner, trial)
            for left in range(passes - 1, 0, -1):
                with self._gradients(left):
                    self._run_segment(segment, x_BTD, kv, tried, None)
            x_BTD = self._run_segment(segment, x_BTD, kv, tokens, hidden_states)
            later = self.layout.kv_source_layers[segment.stop :]
            kv = {owner: held for owner, held in kv.items() if owner in later}
        return x_BTD

    def _run_segment(
        self,
        segment: range,
        x_BTD: Tensor,
        kv: dict[int, KeysValues],
        tokens: list[Tokens],
        hidden_states: list[Tensor] | None,
    ) -> Tensor:
        """Its output in one pass. `kv` has the owners' keys and values, those above a reader as the pass before left
        them."""
        upper = {owner: _behind_zeros(kv[owner]) for owner in self._read_from_below(segment)}
        for layer in segment:
            if hidden_states is not None:
                hidden_states.append(x_BTD)
            source, attentions = self.layout.kv_source_layers[layer], tokens[layer].attentions
            given = upper[source] if source > layer else kv[source] if source < layer else (None, None)
            x_BTD, used = self._run_block(self.blocks[layer], x_BTD, given, tokens[layer])
            if source == layer:
                kv[layer] = used  # type: ignore[assignment]  # has no latent
            elif source > layer and attentions:
                attentions[-1] = attentions[-1][..., 1:]
        return x_BTD

    def _read_from_below(self, segment: range) -> list[int]:
        """Owners that a layer below them in the segment reads."""
        sources = self.layout.kv_source_layers
        return sorted({sources[layer] for layer in segment if sources[layer] > layer})

    def _tokens_above(self, tokens: list[Tokens], x_BTD: Tensor, begin: int | Tensor) -> list[Tokens]:
        """One entry per layer, for those that read from above without their own token. Layers of a kind have the same
        mask, which is made once."""
        readers = {layer for layer, source in enumerate(self.layout.kv_source_layers) if source > layer}
        kinds = {id(tokens[layer]): tokens[layer] for layer in readers}
        without = {kind: _without_own(each, x_BTD, begin) for kind, each in kinds.items()}
        return [without[id(each)] if layer in readers else each for layer, each in enumerate(tokens)]

    @contextmanager
    def _gradients(self, left: int) -> Iterator[None]:
        """For a pass that so many follow: none unless it is one of the last `backward_passes`."""
        if not torch.is_grad_enabled() or left < (self.layout.backward_passes or 1):
            yield
            return
        with torch.no_grad():
            yield
        # Autocast keeps the weights that it cast, and would give those without gradients to the passes that have some.
        torch.clear_autocast_cache()

    def _zeros(self, x_BTD: Tensor, owner: int, trial: Trial | None) -> KeysValues:
        """An owner's keys and values before the first pass: those in the cache, and zeros for the new tokens."""
        size = len(x_BTD), self.layout.heads_of(owner), x_BTD.shape[1], self.shape.head_dim
        # A cache is allocated in the type of what it is first asked about: that of the keys.
        kind = x_BTD.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_BTD.dtype
        zeros_BGTK = x_BTD.new_zeros(size, dtype=dtype)
        if trial is None:
            return zeros_BGTK, zeros_BGTK
        return trial.update(zeros_BGTK, zeros_BGTK, self.layout.cache_layer(owner))


@dataclass(frozen=True)
class Trial:
    """A cache that is read as if new keys and values had been written to it, and stays as it is.

    begin: tokens in the cache. size: `S`, of what it then gives back.
    """

    cache: KVCache
    begin: int | Tensor
    size: int

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, /) -> KeysValues:
        # Without new tokens an update gives what the cache holds, in every kind of cache.
        held = self.cache.update(key_states[:, :, :0], value_states[:, :, :0], layer_idx)
        return self._joined(held[0], key_states), self._joined(held[1], value_states)

    def _joined(self, held_BGSK: Tensor, new_BGTK: Tensor) -> Tensor:
        if held_BGSK.shape[2] < self.size:
            return torch.cat([held_BGSK, new_BGTK.to(held_BGSK.dtype)], 2)
        places_T = torch.arange(new_BGTK.shape[2], device=new_BGTK.device) + self.begin
        return held_BGSK.index_copy(2, places_T, new_BGTK.to(held_BGSK.dtype))

    def get_seq_length(self) -> int:
        return self.cache.get_seq_length()

    def get_mask_sizes(self, query_length: int, layer_idx: int, /) -> tuple[int, int]:
        return self.cache.get_mask_sizes(query_length, layer_idx)


def _behind_zeros(kv: KeysValues) -> KeysValues:
    """With a key and a value of zeros before the first token: `[B, G, 1 + S, K]`."""
    k_BGSK, v_BGSK = (functional.pad(part, (0, 0, 1, 0)) for part in kv)
    return k_BGSK, v_BGSK


def _without_own(tokens: Tokens, x_BTD: Tensor, begin: int | Tensor) -> Tokens:
    """For a layer that reads from above: no query attends to its own token, and one that attends to no other attends to
    the zeros before the first. The mask is `[B, 1, T, 1 + S]`."""
    length = x_BTD.shape[1]
    query_T1 = begin + torch.arange(length, device=x_BTD.device)[:, None]
    mask = tokens.mask
    if mask is None:  # causal over keys that end with the newest token
        mask = (torch.arange(int(begin) + length, device=x_BTD.device) <= query_T1)[None, None]
    own_TS = torch.arange(mask.shape[-1], device=x_BTD.device) == query_T1
    if mask.dtype == torch.bool:
        seen_B1TS = mask & ~own_TS
        return replace(tokens, mask=torch.cat([~seen_B1TS.any(-1, keepdim=True), seen_B1TS], -1))
    least = torch.finfo(mask.dtype).min
    masked_B1TS = mask.masked_fill(own_TS, least)
    unseen_B1T1 = (masked_B1TS > least).logical_not().all(-1, keepdim=True)
    zeros_B1T1 = masked_B1TS.new_zeros(unseen_B1T1.shape).masked_fill(~unseen_B1T1, least)
    return replace(tokens, mask=torch.cat([zeros_B1T1, masked_B1TS], -1))
