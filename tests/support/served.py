"""The exports that engines are tried with, and the comparison of an engine's greedy tokens with ours.

The comparison runs our decoder once over a prompt and the engine's own answer to it. Where every token of the answer is
the one with our highest logit, the answer is what our `generate()` gives. A token whose logit is lower by less than
`NOISE` of the largest logit is a tie that rounding decides, and is counted; any other token is wrong. What comes after
a tie is compared all the same, since our decoder reads the engine's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mlkv.corpus.tokenizer import train
from mlkv.export.card import Origin
from mlkv.export.checkpoint import Checkpoint
from mlkv.export.directory import export
from mlkv.families.config import shape_of
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.patterns import make
from mlkv.shape import DecoderShape
from tests.support.matrix import FAMILY_CONFIGS, HEADS, LAYERS

NEW_TOKENS = 256
PROMPTS = [[11, 3, 250, 77, 140], [5], [200 - 7 * i % 190 for i in range(60)]]
"""One is longer than the windows of local layers; with 256 more, all are."""
NOISE = 1e-4
"""Of the largest logit. In float32 the logits of engines and ours differ by 1e-6 to 1e-5 of it."""
VOCAB, CONTEXT, WIDTH, WINDOW = 300, 512, 128, 24

LAYOUTS = {
    "pairs": make("even", LAYERS, HEADS, 3, 2),
    "0 1 0 1 0 1": KVLayout((0, 1, 0, 1, 0, 1), (2, 2), HEADS),
    "one owner": make("even", LAYERS, HEADS, 1, 2),
    "MHA": mha(LAYERS, HEADS),
    "GQA": make("even", LAYERS, HEADS, LAYERS, 2),
    "MQA": make("even", LAYERS, HEADS, LAYERS, 1),
}


@dataclass(frozen=True)
class Served:
    """A model with random weights. family: a row of FAMILY_CONFIGS. changes: of its shape. half: in float16."""

    to: str
    family: str
    layout: str
    changes: dict[str, Any] = field(default_factory=dict, hash=False)
    half: bool = False

    @property
    def name(self) -> str:
        return f"{self.to}-{self.family}-{self.layout}".replace(" ", "")

    @property
    def shape(self) -> DecoderShape:
        """Of the family's switches, in sizes that engines have kernels for."""
        shape = shape_of(FAMILY_CONFIGS[self.family])
        sizes = {
            "width": WIDTH,
            "head_dim": 32,
            "vocab_size": VOCAB,
            "context": CONTEXT,
            "init_std": 0.1,
            "norm_eps": 1e-4,
        }
        if shape.window:
            sizes |= {"window": WINDOW}
        if shape.embedding_scale != 1:
            sizes |= {"embedding_scale": WIDTH**0.5}
        return replace(shape, **{"tied": self.family == "gemma2", **sizes, **self.changes})

    def write(self, folder: Path) -> tuple[MLKVForCausalLM, Path]:
        """The model, which computes in float32, and its export."""
        model = MLKVForCausalLM.from_shape(self.shape, LAYOUTS[self.layout], seed=7).eval()
        generator = torch.Generator().manual_seed(8)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:  # norms and biases are born as ones and zeros, which would hide a wrong one
                    # With a tied head, each token would be followed by itself if the last norm kept its direction.
                    size = 1.0 if name == "model.norm.weight" else 0.1
                    parameter += size * torch.randn(parameter.shape, generator=generator)
        model.to(torch.float16 if self.half else torch.float32)
        checkpoint, out = folder / "checkpoint" / self.name, folder / self.name
        model.save_pretrained(checkpoint)
        train(["the quick brown fox"], 280).save_pretrained(checkpoint)
        export(Checkpoint.read(checkpoint), self.to, out, Origin(self.name))
        return model.float(), out


_NO_WINDOW = {"window": 0, "local_layers": ()}
_GEMMA = {"attention_scalar": 0, "tied": True}
GGUF = {
    "llama": Served("gguf", "llama", "GQA"),
    "qwen2": Served("gguf", "qwen2", "GQA"),
    "qwen3": Served("gguf", "qwen3", "MQA"),
    "smollm3": Served("gguf", "smollm3", "GQA", {"unrotated_layers": (3,)}),
    "olmo2": Served("gguf", "olmo2", "GQA"),
    "phi3": Served("gguf", "phi3", "GQA", _NO_WINDOW),
    "stablelm": Served("gguf", "stablelm", "GQA"),
    "gemma": Served("gguf", "gemma", "MQA", _GEMMA),
    "gemma2": Served("gguf", "gemma2", "GQA", _GEMMA),
    "gemma3": Served(
        "gguf", "gemma3", "GQA", {**_GEMMA, "local_rotary_base": 10_000.0, "local_layers": (0, 1, 2, 3, 4)}
    ),
    "gptneox": Served("gguf", "gpt_neox_sequential_tied", "MQA", {"attention_bias": True, "rotary_base": 10_000.0}),
    "gpt2": Served("gguf", "gpt2", "MHA"),
}
"""llama.cpp's architecture → an export that is written as it."""


@dataclass(frozen=True)
class Comparison:
    """ties: places where the engine's token has a logit that is lower by rounding alone. wrong: prompt → first place of
    any other token."""

    tokens: int
    ties: int
    wrong: dict[int, int]


def compare(model: MLKVForCausalLM, answers: list[list[int]]) -> Comparison:
    """An engine's answers to PROMPTS with those of our model."""
    ties, wrong = 0, {}
    for i, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        lower_T = logits_TV.amax(-1) - logits_TV.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        is_wrong_T = lower_T > NOISE * logits_TV.abs().amax(-1)
        ties += int(((lower_T > 0) & ~is_wrong_T).sum())
        if is_wrong_T.any():
            wrong[i] = int(is_wrong_T.int().argmax())
    return Comparison(sum(map(len, answers)), ties, wrong)
