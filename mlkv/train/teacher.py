"""A base and a corpus → the base's largest predictions on some of its rows, for all runs that learn from them.

Legend: `B` rows at once, `N` rows, `T` tokens of a row, `K` tokens whose probability is stored, `V` vocabulary. The
folder holds, row after row and nothing else: `rows.bin`, the tokens as the corpus has them, `N·T`; `ids.bin`, for each
token but a row's last, the K ids that are likeliest to follow it, little-endian uint16 or uint32 as the tokens are;
`log_probs.bin`, the logarithms of their probabilities, and of the probability of all other tokens together, K + 1
float16. Where K is the whole vocabulary, the probabilities are in the order of the ids, and there is no `ids.bin`.
`teacher.json` has the sizes.

float16 is enough: on the quickstart's base it changes the KL divergence by less than 2e-5 of it (docs/uptraining.md).
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from ..context import Context, Interrupted, Outcome, StepFailed
from ..corpus.blocks import Blocks, check_ids, open_blocks
from ..corpus.manifest import read_manifest
from ..device import default_device, resolve_precision
from ..training_recipes import TeacherRecipe
from .dataset import BlockDataset

if TYPE_CHECKING:
    from ..hf import MLKVForCausalLM

ROWS, IDS, LOG_PROBS, SIZES = "rows.bin", "ids.bin", "log_probs.bin", "teacher.json"
_FLOAT16 = np.dtype("<f2")
_LEAST = -1e4
"""float16 has nothing below -65,504, and `exp` of this is 0."""


@dataclass(frozen=True)
class Sizes:
    """What the files hold. `dtype` is numpy's name of the type of tokens and ids; `rest` the mean probability of all
    tokens that are not stored."""

    rows: int
    sequence_length: int
    top_k: int
    vocab_size: int
    dtype: str
    temperature: float
    rest: float


def run(
    recipe: TeacherRecipe,
    out: Path,
    ctx: Context,
    *,
    base: Path,
    corpus: Path,
    temperature: float = 1.0,
    share: float = 1.0,
) -> Outcome:
    """Write the predictions of `base` at `temperature` on rows of `corpus`, of `share` of all of them where
    `recipe.tokens` is unset.

    Raises StepFailed where base and corpus do not fit, or there is no room; Interrupted when the step should stop.
    """
    from ..hf import load_checked

    torch.set_num_threads(recipe.threads)
    try:
        model = load_checked(base, dtype=torch.float32)
    except ValueError as error:
        raise StepFailed(str(error)) from error
    manifest, blocks = read_manifest(corpus), open_blocks(corpus, "train")
    check_ids(blocks, manifest.vocab_size, model.shape.vocab_size)
    chosen = _rows(recipe, blocks, share)
    _check_room(recipe, out, len(chosen), manifest.sequence_length, model.shape.vocab_size)
    torch.nn.Module.to(model, device=default_device())
    precision = resolve_precision(recipe.precision, default_device())
    rest = _write(model, blocks, chosen, recipe, out, ctx, temperature, precision)
    top_k = min(recipe.top_k, model.shape.vocab_size)
    sizes = Sizes(
        len(chosen), manifest.sequence_length, top_k, model.shape.vocab_size, blocks.rows.dtype.str, temperature, rest
    )
    (out / SIZES).write_text(json.dumps(asdict(sizes), indent=2) + "\n", "utf-8")
    written = sum((out / name).stat().st_size for name in (ROWS, IDS, LOG_PROBS) if (out / name).exists())
    return Outcome(
        facts={
            "rows": len(chosen),
            "tokens": int((blocks.rows[chosen] != blocks.padding).sum()),
            "top_k": top_k,
            "rest": rest,
            "bytes": written,
            "precision": precision,
        }
    )


def _rows(recipe: TeacherRecipe, blocks: Blocks, share: float) -> NDArray[np.int64]:
    """Which rows, in the order of the corpus."""
    rows, length = blocks.rows.shape
    count = -(-recipe.tokens // length) if recipe.tokens else math.ceil(share * rows)
    return np.sort(np.random.default_rng(recipe.seed).permutation(rows)[:count])


def _check_room(recipe: TeacherRecipe, out: Path, rows: int, length: int, vocab_size: int) -> None:
    needed, free = rows * recipe.row_bytes(length, vocab_size), shutil.disk_usage(out).free
    if needed > free:
        raise StepFailed(
            f"teacher.top_k = {recipe.top_k}: {rows:,} rows take {needed / 1e9:.1f} GB, and {out} has room for "
            f"{free / 1e9:.1f} GB; lower teacher.top_k or teacher.tokens, or set uptrain.teacher_logits=online"
        )


def _write(
    model: MLKVForCausalLM,
    blocks: Blocks,
    chosen: NDArray[np.int64],
    recipe: TeacherRecipe,
    out: Path,
    ctx: Context,
    temperature: float,
    precision: str,
) -> float:
    """Writes the three files; returns the mean probability of what is not stored, over the places with a token."""
    model.eval()
    whole, rest, places = recipe.top_k >= model.shape.vocab_size, 0.0, 0
    with (out / ROWS).open("wb") as rows, (out / LOG_PROBS).open("wb") as log_probs:
        ids = None if whole else (out / IDS).open("wb")
        for start in range(0, len(chosen), recipe.batch_size):
            ctx.log({"step": start, "steps": len(chosen)})
            if ctx.should_stop():
                raise Interrupted(f"stopped after {start} of {len(chosen)} rows; they are made in one go")
            rows_BT = blocks.rows[chosen[start : start + recipe.batch_size]]
            padding_BT = torch.from_numpy(rows_BT == blocks.padding)
            tokens_BT = torch.from_numpy(rows_BT.astype(np.int64)).masked_fill(padding_BT, 0)
            ids_BTK, log_p = largest(_logits(model, tokens_BT, precision) / temperature, recipe.top_k)
            rows.write(rows_BT.tobytes())
            log_probs.write(log_p.clamp(min=_LEAST).cpu().numpy().astype(_FLOAT16).tobytes())
            if ids is not None:
                ids.write(ids_BTK.cpu().numpy().astype(blocks.rows.dtype).tobytes())
            labelled_BT = ~padding_BT[:, 1:]
            rest += float(log_p[..., -1].cpu().double().exp()[labelled_BT].sum())
            places += int(labelled_BT.sum())
        if ids is not None:
            ids.close()
    ctx.log({"step": len(chosen), "steps": len(chosen)})
    return rest / max(1, places)


def _logits(model: MLKVForCausalLM, tokens_BT: Tensor, precision: str) -> Tensor:
    tokens_BT = tokens_BT.to(model.device)
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(tokens_BT, use_cache=False).logits[:, :-1].float()


def largest(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The `K` likeliest tokens of logits `[…, V]`, `[…, K]`, and the logarithms of their probabilities and of that of
    all others together, `[…, K + 1]`; in the order of the ids where `top_k` is the whole vocabulary or more."""
    log_p = logits.log_softmax(-1)
    if top_k >= logits.shape[-1]:
        nothing = log_p.new_full((*log_p.shape[:-1], 1), -torch.inf)
        return torch.arange(log_p.shape[-1], device=log_p.device).expand_as(log_p), torch.cat([log_p, nothing], -1)
    values, ids = log_p.topk(top_k, -1)
    rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return ids, torch.cat([values, rest], -1)


@dataclass(frozen=True)
class StoredTeacher:
    """What a teacher step left, memory-mapped. ids: None where all tokens are stored."""

    sizes: Sizes
    blocks: Blocks
    ids: NDArray[Any] | None
    log_probs: NDArray[Any]

    @classmethod
    def open(cls, folder: Path) -> StoredTeacher:
        """Raises StepFailed where a file is missing or has another size than it should."""
        try:
            sizes = TypeAdapter(Sizes).validate_json((folder / SIZES).read_bytes())
        except (OSError, ValidationError) as error:
            raise StepFailed(f"teacher = {folder}: {SIZES} is missing or damaged") from error
        places, dtype = (sizes.rows, sizes.sequence_length - 1), np.dtype(sizes.dtype)
        rows = _mapped(folder / ROWS, dtype, (sizes.rows, sizes.sequence_length))
        ids = None
        if sizes.top_k < sizes.vocab_size:
            ids = _mapped(folder / IDS, dtype, (*places, sizes.top_k))
        log_probs = _mapped(folder / LOG_PROBS, _FLOAT16, (*places, sizes.top_k + 1))
        return cls(sizes, Blocks(rows, rows.size), ids, log_probs)


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if not path.is_file() or path.stat().st_size != math.prod(shape) * dtype.itemsize:
        raise StepFailed(f"teacher = {path.parent}: {path.name} is not {' x '.join(map(str, shape))} values of {dtype}")
    return np.memmap(path, dtype, "r").reshape(shape)


class TaughtRow(NamedTuple):
    """A sequence with what the teacher predicts at each of its tokens but the last."""

    tokens: Tensor
    ids: Tensor | None
    log_probs: Tensor


class TaughtDataset(Dataset[TaughtRow]):
    """The sequences of a run that learns from a stored teacher: its rows alone, again and again where the run needs
    more, in an order that depends on the seed and the step alone."""

    def __init__(self, stored: StoredTeacher, sequences: int, seed: int) -> None:
        self.stored, self.data = stored, BlockDataset(stored.blocks, sequences, seed)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> TaughtRow:
        row, ids = self.data.row(i), self.stored.ids
        known = None if ids is None else torch.from_numpy(ids[row].astype(np.int64))
        return TaughtRow(self.data[i], known, torch.from_numpy(self.stored.log_probs[row].astype(np.float32)))

    def collate(self, rows: list[TaughtRow]) -> dict[str, Tensor]:
        batch = self.data.collate([row.tokens for row in rows])
        batch["teacher_log_probs"] = torch.stack([row.log_probs for row in rows])
        if ids := [row.ids for row in rows if row.ids is not None]:
            batch["teacher_ids"] = torch.stack(ids)
        return batch
