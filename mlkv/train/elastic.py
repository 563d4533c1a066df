"""One decoder that is trained as several layouts in turn, so that each can be cut from it afterwards.

It keeps all KV heads of its base. For a layout, the heads that it merges are combined where they are used, by the
function that a conversion combines them with, and gradients flow to all of them: a conversion of the trained checkpoint
computes exactly what was trained. Stochastic KV routing (arXiv 2604.22782) samples whose keys and values a layer
attends to; once-for-all networks (1908.09791) and MatFormer (2310.07707) sample nested parts of the weights.

Legend: `B` sequences, `D` width, `T` tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import Dataset

from ..convert.calibration import Calibration
from ..convert.frames import FRAMES
from ..convert.heads import Group, in_frames
from ..convert.merging import merge_kv
from ..layout import KVLayout
from ..model import Decoder, SharedKV
from ..packed import some_rows
from .dataset import BlockDataset
from .sampling import Sampling
from .trainer import BlockTrainer

if TYPE_CHECKING:
    from ..hf import MLKVForCausalLM

State = dict[str, Tensor]


@dataclass(frozen=True)
class Elastic:
    """What makes a training elastic.

    layouts: those that are sampled. merge: how their heads are combined. per_step: layouts in one optimizer step.
    calibration: the folder with the base's, where its heads are turned into common frames first.
    """

    layouts: tuple[KVLayout, ...]
    merge: str
    per_step: int
    calibration: Path | None = None

    def prepare(self, model: MLKVForCausalLM) -> None:
        """Give a base the decoder that can be trained. Raises ValueError for keys that are cached unrotated: there a
        layer rotates its own keys, and its readers do not."""
        if model.model.keys != "rotated":
            raise ValueError(f"keys = {model.model.keys}: elastic training takes models that cache rotated keys")
        if self.calibration:
            align(model.model, self.layouts, Calibration.load(self.calibration))
        model.model = ElasticDecoder(model.model, self.layouts, self.merge)


def coarsest(layouts: Sequence[KVLayout]) -> KVLayout:
    """The layout that merges all heads which any of these merges, and no others."""
    sources = list(range(layouts[0].layers))
    for layout in layouts:
        for layer, source in enumerate(layout.kv_source_layers):
            low, high = sorted((sources[layer], sources[source]))
            sources = [low if each == high else each for each in sources]
    heads = {
        owner: gcd(*(layout.heads_of(i) for layout in layouts for i, source in enumerate(sources) if source == owner))
        for owner in sorted(set(sources))
    }
    return KVLayout(tuple(sources), tuple(heads.values()), layouts[0].heads)


def align(decoder: Decoder, layouts: Sequence[KVLayout], calibration: Calibration) -> None:
    """Turn all KV heads that any of the layouts merges into one frame, in place: the decoder computes what it did, and
    means of any of these heads become meaningful (mlkv/convert/frames.py)."""
    state, joined = decoder.state_dict(), coarsest(layouts)
    for owner in joined.owners:
        group = Group(decoder.layout, joined, owner, decoder.shape.rotated_dims)
        if group.merges:
            state |= in_frames(state, group, FRAMES["orthogonal"], calibration)
    decoder.load_state_dict(state)


class ElasticDecoder(Decoder):
    """A decoder with the weights of `decoder` that computes each sequence as one of `layouts`.

    chosen: the number of each sequence's layout, `[B]`; None: all are computed with the decoder's own layout.
    """

    def __init__(self, decoder: Decoder, layouts: Sequence[KVLayout], merge: str) -> None:
        super().__init__(decoder.shape, decoder.layout, decoder.keys)
        self.load_state_dict(decoder.state_dict())
        self.gradient_checkpointing = decoder.gradient_checkpointing
        self.layouts, self.merge = tuple(layouts), merge
        self.chosen: Tensor | None = None
        self._merged: dict[int, State] = {}

    def forward(self, inputs: Tensor, *others: Any, documents: Tensor | None = None, **named: Any) -> Tensor:
        if self.chosen is None:
            return super().forward(inputs, *others, documents=documents, **named)
        if any(other is not None for other in (*others, *named.values())):
            raise ValueError("sequences with a chosen layout are computed from their ids alone: no mask, no cache")
        numbers = self.chosen.unique().tolist()
        rows = [(self.chosen == number).nonzero().flatten() for number in numbers]
        parts = []
        for number, rows_N in zip(numbers, rows, strict=True):
            with self._as(self.layouts[number]):
                own = None if documents is None else some_rows(documents, rows_N, inputs.shape[1])
                parts.append(super().forward(inputs[rows_N], documents=own))
        return torch.cat(parts)[torch.cat(rows).argsort()]

    @contextmanager
    def _as(self, layout: KVLayout) -> Iterator[None]:
        own = self.layout
        self._merged, self.layout = self.merged_heads(layout), layout
        try:
            yield
        finally:
            self._merged, self.layout = {}, own

    def merged_heads(self, layout: KVLayout) -> dict[int, State]:
        """The keys' and values' weights of each owner of a layout, by their names in its block."""
        own: State = {**dict(self.named_parameters())}
        zero = self.embed.weight.new_zeros(())
        shapes = self.shape.weights(layout)
        # No newly initialised heads: the merges that may be trained do not use them.
        kinds = (".attention.k.", ".attention.v.", ".attention.k_norm.")
        fresh = {name: zero.expand(shape) for name, shape in shapes.items() if any(kind in name for kind in kinds)}
        found: dict[int, State] = {owner: {} for owner in layout.owners}
        for name, weight in merge_kv(own, fresh, self.layout, layout, self.merge).items():
            _blocks, owner, rest = name.split(".", 2)
            found[int(owner)][rest] = weight
        return found

    def _run_block(self, block: nn.Module, *inputs: object) -> tuple[Tensor, SharedKV]:
        merged = self._merged.get(block.attention.layer)  # type: ignore[union-attr, arg-type]
        # The call itself is what gradient checkpointing repeats, so that it has these weights then too.
        return super()._run_block(partial(_call, block, merged) if merged else block, *inputs)  # type: ignore[arg-type]


def _call(block: nn.Module, weights: State, *inputs: object) -> tuple[Tensor, SharedKV]:
    """The block with these weights in place of its own; keys and values may have fewer heads."""
    result: tuple[Tensor, SharedKV] = functional_call(block, weights, inputs)
    return result


class ElasticDataset(Dataset[tuple[Tensor, int]]):
    """The sequences of a run, each with the number of its layout."""

    def __init__(self, sequences: BlockDataset, sampling: Sampling) -> None:
        self.sequences, self.sampling = sequences, sampling

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.sequences[i], self.sampling.number_of(i)

    def collate(self, pairs: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        batch = self.sequences.collate([row for row, _ in pairs])
        return {**batch, CHOSEN: torch.tensor([number for _, number in pairs])}


CHOSEN = "chosen"
"""The entry of a batch that says which layout each of its sequences is computed as."""


class ElasticTrainer(BlockTrainer):
    """The training loop with a layout for every sequence. Whatever loss it computes is that of the sampled layouts."""

    def __init__(self, elastic: Elastic, *arguments: Any) -> None:
        super().__init__(*arguments)
        recipe = self.schedule.recipe
        sampling = Sampling(len(elastic.layouts), recipe.seed, elastic.per_step, recipe.batch_size)
        trainer: Any = self
        data = ElasticDataset(trainer.train_dataset, sampling)
        trainer.train_dataset, trainer.data_collator = data, data.collate

    def create_accelerator_and_postprocess(self) -> None:
        # A merge may use some heads alone, as `first` does, and a process waits for the gradients of the others. Only
        # here is this read.
        self.args.ddp_find_unused_parameters = True
        super().create_accelerator_and_postprocess()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.model.model.chosen = inputs[CHOSEN]
        own = {name: value for name, value in inputs.items() if name != CHOSEN}
        return super().compute_loss(model, own, return_outputs, num_items_in_batch)
