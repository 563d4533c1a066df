"""A base and a corpus → how alike its layers and heads are on held-out text, and what their sharing would cost.

Legend: `N` windows, `T` tokens of a window, `L` layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..context import Context, Interrupted, MetricRow, Outcome, StepFailed
from ..corpus.blocks import check_ids, open_blocks
from ..corpus.manifest import read_manifest
from ..device import default_device
from ..evaluate.bits import Windows, cut_windows, ratio
from ..hf import load_checked
from ..model import Decoder
from ..recipes import SimilarityRecipe
from . import damage
from .measures import Alignment, Cosine, Distance, Divergence, Pairs, passes
from .recording import LayerPass, Pass, record
from .results import ATTENTION, DAMAGE, DISTANCE, KEYS, MEASURES, UNROTATED, VALUES, Similarity, pairs_below


def run(recipe: SimilarityRecipe, out: Path, ctx: Context, *, base: Path, corpus: Path) -> Outcome:
    """Write the similarities of `base` on held-out windows of `corpus`. Raises StepFailed where base and corpus do not
    fit, or no window is full; Interrupted when the step should stop."""
    torch.set_num_threads(recipe.threads)
    try:
        model = load_checked(base, dtype=torch.float32)
        check_comparable(model.model)
    except ValueError as error:
        raise StepFailed(str(error)) from error
    check_ids(open_blocks(corpus, "heldout"), read_manifest(corpus).vocab_size, model.shape.vocab_size)
    windows = full_windows(corpus, recipe.windows)
    torch.nn.Module.to(model, device=default_device())

    def progress(done: int, of: int) -> None:
        ctx.log({"step": done, "steps": of})
        if done < of and ctx.should_stop():
            raise Interrupted(f"stopped after {done} of {of} windows; similarities are computed in one go")

    found = compare(model.model.eval(), windows, recipe, progress)
    found.save(out)
    facts = {"windows": len(windows.ids), "tokens": windows.ids.size, "queries": len(queries(windows, recipe))}
    return Outcome(metrics(found), facts)


def check_comparable(decoder: Decoder) -> None:
    """Raises ValueError for a decoder whose layers do not each have keys and values of one pass."""
    reason = ""
    if decoder.layout.latent:
        reason = "its layers cache latents, which are not keys and values"
    elif decoder.layout.reads_above:
        reason = "its layers that read from above run several times"
    elif decoder.keys == "unrotated":
        reason = "its readers attend to other keys than their owners"
    if reason:
        raise ValueError(f"similarity: the base cannot be compared layer by layer: {reason}; set similarity=none")


def full_windows(corpus: Path, limit: int) -> Windows:
    """`limit` of the held-out text's windows that have no padding, spread evenly over it; all, if there are fewer.
    Raises StepFailed where there is none."""
    every, end = cut_windows(corpus, None), read_manifest(corpus).end_of_text
    # Only the last window may be padded, with the end-of-text token.
    full = np.flatnonzero(every.ids[:, -1] != end)
    if not len(full):
        length = every.ids.shape[1]
        raise StepFailed(f"corpus.sequence_length = {length}: no window of the held-out text has so many tokens")
    chosen = full[np.linspace(0, len(full) - 1, min(limit, len(full))).round().astype(int)]
    return Windows(every.ids[chosen], every.counted[chosen], every.bytes[chosen])


def queries(windows: Windows, recipe: SimilarityRecipe) -> Tensor:
    """Places in a window whose attention is compared, spread evenly; never the first, which attends to itself alone."""
    last = windows.ids.shape[1] - 1
    return torch.from_numpy(np.linspace(1, last, min(recipe.queries, last)).round().astype(np.int64))


def compare(
    decoder: Decoder,
    windows: Windows,
    recipe: SimilarityRecipe,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Similarity:
    """All measures of a decoder on these windows."""
    found = _Measures(decoder, queries(windows, recipe).to(decoder.embed.weight.device), recipe.damage)
    heads = [max(keys, values) for keys, values in zip(found.key_heads, found.value_heads, strict=True)]
    rounds, count = passes([each * decoder.shape.head_dim for each in heads]), len(windows.ids)
    for number, pairs in enumerate(rounds):
        for first, ids_BT, counted_BT in _batches(windows, recipe.batch_size, decoder):
            progress(number * count + first, len(rounds) * count)
            done = record(decoder, ids_BT)
            found.align(done, pairs)
            if number == 0:
                found.add(done, ids_BT, counted_BT)
        found.end_pass()
    progress(len(rounds) * count, len(rounds) * count)
    return found.result(windows)


def _batches(windows: Windows, size: int, decoder: Decoder) -> Iterator[tuple[int, Tensor, Tensor]]:
    for first in range(0, len(windows.ids), size):
        ids, counted = (torch.from_numpy(part[first : first + size]) for part in (windows.ids, windows.counted))
        device = decoder.embed.weight.device
        yield first, ids.to(device), counted.to(device)


class _Measures:
    """The sums of all measures."""

    def __init__(self, decoder: Decoder, chosen: Tensor, with_damage: bool) -> None:
        layout = decoder.layout
        self.decoder, self.chosen, self.with_damage = decoder, chosen, with_damage
        self.key_heads, self.value_heads = (
            [part.heads_of(source) for source in part.kv_source_layers] for part in (layout.keys, layout.values)
        )
        self.alignments: dict[str, Alignment] = {}
        self.cosines = {KEYS: Cosine(), VALUES: Cosine()}
        self.distance, self.of_layers, self.of_heads = Distance(), Divergence(), Divergence()
        self.nats: list[Tensor] = []
        self.excess: list[Tensor] = []

    def align(self, done: Pass, pairs: Pairs) -> None:
        for kind, layers in _features(done.layers).items():
            heads = self.value_heads if kind == VALUES else self.key_heads
            self.alignments.setdefault(kind, Alignment(heads)).add(layers, pairs)

    def end_pass(self) -> None:
        for alignment in self.alignments.values():
            alignment.end_pass()

    def add(self, done: Pass, ids_BT: Tensor, counted_BT: Tensor) -> None:
        features = _features(done.layers)
        for kind, cosine in self.cosines.items():
            cosine.add(features[kind])
        self.distance.add(features[KEYS], features[VALUES])
        weights = [layer.weights(self.chosen) for layer in done.layers]
        for window in range(len(ids_BT)):  # one at a time: every pair of heads has as many numbers
            self.of_heads.add(torch.cat([each[window] for each in weights]))
        self.of_layers.add(torch.stack([each.mean(1) for each in weights]))
        if self.with_damage:
            nats_B, excess_BLL = damage.excess(self.decoder, done, ids_BT, counted_BT)
            self.nats.append(nats_B.cpu())
            self.excess.append(excess_BLL.cpu())

    def result(self, windows: Windows) -> Similarity:
        layers: dict[str, Tensor | None] = {ATTENTION: self.of_layers.means(), DISTANCE: self.distance.distances()}
        heads = {ATTENTION: self.of_heads.means()}
        for kind, alignment in self.alignments.items():
            layers[f"cka_{kind}"], heads[f"cka_{kind}"] = alignment.cka()
        for kind, cosine in self.cosines.items():
            layers[f"cosine_{kind}"], heads[f"cosine_{kind}"] = cosine.means()
        size = (0, self.decoder.shape.layers, self.decoder.shape.layers)
        return Similarity(
            {name: each.numpy() for name in MEASURES if (each := layers.get(name)) is not None},
            {name: heads[name].numpy() for name in MEASURES if name in heads},
            np.array(self.key_heads),
            np.array(self.value_heads),
            torch.cat(self.excess).numpy() if self.excess else np.zeros(size),
            windows.counted.sum(1).astype(float) if self.excess else np.zeros(0),
            torch.cat(self.nats).numpy() if self.nats else np.zeros(0),
        )


def _features(layers: list[LayerPass]) -> dict[str, list[Tensor]]:
    """By kind, `[B, G, T, K]` of each layer; unrotated keys where any layer rotates them."""
    found = {KEYS: [each.keys for each in layers], VALUES: [each.values for each in layers]}
    if any(each.unrotated is not None for each in layers):
        found[UNROTATED] = [each.keys if each.unrotated is None else each.unrotated for each in layers]
    return found


def metrics(found: Similarity) -> list[MetricRow]:
    """Of every measure the mean over pairs of layers. Of the damage only those pairs in which a layer reads one below
    it, with the standard error over windows; and those in which it reads the next one."""
    pairs = pairs_below(len(found.key_heads))
    if not pairs:
        return []
    places = tuple(np.array(pairs).T)
    rows = [MetricRow(name, float(values[places].mean()), n=len(pairs)) for name, values in found.layers.items()]
    if len(found.tokens):
        near = tuple(np.array([pair for pair in pairs if pair[0] - pair[1] == 1]).T)
        for name, chosen in ((DAMAGE, places), (f"{DAMAGE}_of_next", near)):
            mean_N = found.excess[(slice(None), *chosen)].mean(1)
            rows.append(MetricRow(name, *ratio(mean_N, found.tokens), len(mean_N)))
        rows.append(MetricRow("nats_per_token", *ratio(found.nats, found.tokens), len(found.nats)))
    return rows
