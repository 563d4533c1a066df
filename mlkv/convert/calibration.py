"""A base and a corpus → what the base computes on a little training text, by which heads are aligned and weighed.

Legend: `B` sequences, `D` width, `N` calibration tokens, `T` tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..context import Context, Interrupted, Outcome, StepFailed
from ..corpus.blocks import open_blocks
from ..device import default_device
from ..layout import KINDS, Kind
from ..recipes import CalibrateRecipe

if TYPE_CHECKING:
    from ..attention import Attention
    from ..hf import MLKVForCausalLM

FILE = "calibration.safetensors"


@dataclass(frozen=True)
class Calibration:
    """inputs: what each layer's keys and values are computed from, `[N, D]`; of a layer that has none of its own, what
    its queries are computed from.
    fisher: the diagonal of the empirical Fisher information, summed over a KV head's weights, `[heads]` of each layer
    that has keys or values, first for keys, then for values (arXiv 2111.09832 averages models by it); empty for those
    of the two that it does not have.
    """

    inputs: dict[int, Tensor]
    fisher: dict[int, tuple[Tensor, Tensor]]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        tensors = {f"inputs.{layer}": inputs for layer, inputs in self.inputs.items()}
        for layer, (keys, values) in self.fisher.items():
            tensors |= {f"fisher.keys.{layer}": keys, f"fisher.values.{layer}": values}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Calibration:
        from safetensors.torch import load_file

        tensors = load_file(folder / FILE)
        inputs = {int(name.split(".")[-1]): tensor for name, tensor in tensors.items() if name.startswith("inputs.")}
        fisher = {
            layer: (tensors[f"fisher.keys.{layer}"], tensors[f"fisher.values.{layer}"])
            for layer in inputs
            if f"fisher.keys.{layer}" in tensors
        }
        return cls(inputs, fisher)


def run(recipe: CalibrateRecipe, out: Path, ctx: Context, *, base: Path, corpus: Path) -> Outcome:
    """Write the calibration of `base` on rows of `corpus`. Raises StepFailed where the corpus has too few rows that are
    full, or the base cannot be loaded; Interrupted when the step should stop."""
    from ..hf import load_checked

    torch.set_num_threads(recipe.threads)
    ids_BT = _rows(recipe, corpus)
    try:
        model = load_checked(base)
    except ValueError as error:
        raise StepFailed(str(error)) from error

    def progress(done: int) -> None:
        ctx.log({"step": done, "steps": len(ids_BT)})
        if ctx.should_stop():
            raise Interrupted(f"stopped after {done} of {len(ids_BT)} rows; a calibration is made in one go")

    torch.nn.Module.to(model, device=default_device(), dtype=torch.float32)
    calibrate(model, ids_BT, progress).save(out)
    progress(len(ids_BT))
    return Outcome(facts={"rows": len(ids_BT), "tokens": ids_BT.numel()})


def _rows(recipe: CalibrateRecipe, corpus: Path) -> Tensor:
    """`[B, T]`, chosen by the seed among the rows without padding."""
    blocks = open_blocks(corpus, "train")
    count = -(-recipe.tokens // blocks.rows.shape[1])
    order = np.random.default_rng(recipe.seed).permutation(len(blocks.rows))
    full = (int(row) for row in order if (blocks.rows[row] != blocks.padding).all())
    chosen = sorted(islice(full, count))
    if len(chosen) < count:
        tokens = len(chosen) * blocks.rows.shape[1]
        raise StepFailed(f"calibrate.tokens = {recipe.tokens}: the corpus has {tokens} tokens in rows that are full")
    return torch.from_numpy(blocks.rows[chosen].astype(np.int64))


def calibrate(
    model: MLKVForCausalLM, ids_BT: Tensor, progress: Callable[[int], None] = lambda done: None
) -> Calibration:
    """From one pass forward and one back over each sequence, on the model's device. Its weights stay as they are."""
    model.eval()
    inputs: dict[int, list[Tensor]] = {}
    fisher: dict[int, tuple[Tensor, Tensor]] = {}
    with _recorded_inputs(model, inputs):
        for done, ids_T in enumerate(ids_BT):
            progress(done)
            model.zero_grad(set_to_none=True)
            ids_1T = ids_T[None].to(model.device)
            model(ids_1T, labels=ids_1T, loss_only=True).loss.backward()
            for layer, attention in _attentions(model):
                if attention.owns:
                    keys, values = (_squared_gradient(attention, kind).cpu() for kind in KINDS)
                    before = fisher.get(layer, (torch.zeros_like(keys), torch.zeros_like(values)))
                    fisher[layer] = (before[0] + keys, before[1] + values)
    model.zero_grad(set_to_none=True)
    return Calibration({layer: torch.cat(parts) for layer, parts in inputs.items()}, fisher)


def _attentions(model: MLKVForCausalLM) -> Iterator[tuple[int, Attention]]:
    for layer, block in enumerate(model.model.blocks):
        yield layer, block.attention  # type: ignore[misc]  # to torch, what a ModuleList holds is any module


def _squared_gradient(attention: Attention, kind: Kind) -> Tensor:
    """Summed over each head's weights and biases, `[heads]`; 0 heads where it has no such projection."""
    if kind not in attention.owns:
        return torch.zeros(0)
    gradients = [parameter.grad for parameter in getattr(attention, kind).parameters()]
    rows = torch.stack([g.float().square().flatten(1).sum(1) if g.dim() > 1 else g.float().square() for g in gradients])
    return rows.sum(0).unflatten(0, (-1, attention.head_dim)).sum(1)


@contextmanager
def _recorded_inputs(model: MLKVForCausalLM, inputs: dict[int, list[Tensor]]) -> Iterator[None]:
    def recorder(layer: int) -> Callable[[object, tuple[Tensor, ...]], None]:
        return lambda _module, given: inputs.setdefault(layer, []).append(given[0].detach().float().flatten(0, 1).cpu())

    handles = [
        getattr(attention, (*attention.owns, "q")[0]).register_forward_pre_hook(recorder(layer))
        for layer, attention in _attentions(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
