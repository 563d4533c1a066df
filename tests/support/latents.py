"""Models and layouts with latents, and bases that are converted to them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from mlkv.convert.calibration import Calibration, calibrate
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, Latent, mha
from mlkv.shape import DecoderShape
from tests.support.matrix import HEADS, LAYERS, SHAPES, VOCAB

IDS = torch.randint(1, VOCAB, (2, 9), generator=torch.Generator().manual_seed(6))
TEXT = torch.randint(VOCAB, (4, 40), generator=torch.Generator().manual_seed(5))


def latent_of(
    shape: DecoderShape, layout: KVLayout, rank: int, rotary_dims: int | None = None, shared: bool = False
) -> KVLayout:
    rotary = shape.rotated_dims if rotary_dims is None else rotary_dims
    ranks = tuple(min(rank, shape.full_rank(layout, owner, rotary)) for owner in layout.owners)
    return replace(layout, latent=Latent(ranks, rotary, shared))


def noisy(model: MLKVForCausalLM) -> MLKVForCausalLM:
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():  # biases are born as zeros, which would hide mistakes
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model.eval()


@cache
def base(shape: str) -> tuple[MLKVForCausalLM, Calibration]:
    subject = noisy(MLKVForCausalLM.from_shape(SHAPES[shape], mha(LAYERS, HEADS), seed=11))
    return subject, calibrate(subject, TEXT)
