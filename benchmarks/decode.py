"""Decoding steps of ours beside transformers' own, in turns in one process.

    python benchmarks/decode.py                  # CPU, one thread
    python benchmarks/decode.py --device cuda    # bytes per second beside a copy's
    python benchmarks/decode.py --part same      # one of: mha, same, compiled

A rival is a model with a cache that holds `context` tokens (random keys and values; what a step costs does not depend
on them). A turn is STEPS greedy steps, each from logits to the next token, after which the cache is taken back, so that
each round begins at the same context. A ratio is taken within rounds; the numbers are medians over rounds. Where both
have the same weights, the logits of both are compared first, on the same keys and values.

- mha: MLKV-3 (three owners of one KV head, six layers of eight heads of 64) beside GPTNeoXForCausalLM of the same
  shape, which has plain MHA, with a StaticCache.
- same: a Llama with the layout of MLKV-3, written with transformers' attention interface (benchmarks/sharing_llama.py),
  with a StaticCache and with a DynamicCache; the same weights.
- compiled: LlamaForCausalLM with two KV heads a layer, its step compiled and not; the same weights.

On CUDA: a step of Pythia-160M's shape reads the weights and every cached byte once. Those bytes over its time, over the
bandwidth of a copy in the same run. The last line is one JSON object.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM, StaticCache

from mlkv.decoding import Decoding
from mlkv.device import DTYPES
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KVLayout, mha
from mlkv.shape import DecoderShape

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.sharing_llama import sharing_pair
from benchmarks.turns import arguments, circumstances, in_turns, ratio, report

STEPS, VOCABULARY = 4, 2048
NEOX = DecoderShape(
    layers=6, heads=8, head_dim=64, width=512, mlp_width=2048, vocab_size=VOCABULARY, context=4096, rotary_fraction=0.25
)
LLAMA = DecoderShape(
    layers=6,
    heads=8,
    head_dim=64,
    width=512,
    mlp_width=1408,
    vocab_size=VOCABULARY,
    context=4096,
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    attention_bias=False,
    mlp_bias=False,
    parallel_residual=False,
    rotary_fraction=1.0,
)
MLKV_3 = KVLayout((0, 0, 2, 2, 4, 4), (1, 1, 1), 8)
GQA_2 = KVLayout((0, 1, 2, 3, 4, 5), (2,) * 6, 8)
PYTHIA_160M = DecoderShape(
    layers=12, heads=12, head_dim=64, width=768, mlp_width=3072, vocab_size=50304, context=4096, rotary_fraction=0.25
)


@dataclass
class Theirs:
    """A model of transformers whose cache holds `context` tokens."""

    model: Any
    cache: Any
    batch: int
    context: int
    compiled: bool = False

    def __post_init__(self) -> None:
        self.forward = torch.compile(self.model.forward, fullgraph=True) if self.compiled else self.model.forward
        self.next_B1 = torch.ones(self.batch, 1, dtype=torch.long, device=self.model.device)

    def logits(self, next_B1: Tensor) -> Tensor:
        return self.forward(next_B1, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def take_back(self, tokens: int) -> None:
        if isinstance(self.cache, DynamicCache):
            self.cache.crop(-tokens)
            return
        for layer in self.cache.layers:
            if layer.keys is not None:
                layer.cumulative_length.sub_(tokens)

    @torch.inference_mode()
    def turn(self) -> None:
        next_B1 = self.next_B1
        for _ in range(STEPS):
            next_B1 = self.logits(next_B1).argmax(-1, keepdim=True)
        self.take_back(STEPS)


@dataclass
class Ours:
    decoding: Decoding

    def __post_init__(self) -> None:
        self.next_B1 = torch.ones(self.decoding.batch, 1, dtype=torch.long, device=self.decoding.model.device)

    def turn(self) -> None:
        next_B1 = self.next_B1
        for _ in range(STEPS):
            next_B1 = self.decoding.step(next_B1)
        self.decoding.rewind(STEPS)


@torch.inference_mode()
def filled(model: Any, layout: KVLayout, batch: int, context: int, kind: str) -> Any:
    """transformers' cache with the random keys and values that `Decoding.fill` makes of the same seed."""
    static = kind == "static"
    cache = StaticCache(model.config, max_cache_len=context + STEPS) if static else DynamicCache(config=model.config)
    generator = torch.Generator(model.device).manual_seed(0)
    for owner in layout.owners:
        sizes = layout.cached_sizes(owner, 64)
        keys, values = (
            torch.randn(batch, heads, context, width, generator=generator, dtype=model.dtype, device=model.device)
            for heads, width in sizes
        )
        cache.update(keys, values, owner)
    return cache


def decoding(model: MLKVForCausalLM, batch: int, context: int, compiled: bool = False) -> Decoding:
    made = Decoding(model, batch, context + STEPS, compiled=compiled)
    made.fill(context, torch.Generator(model.device).manual_seed(0))
    return made


@torch.inference_mode()
def difference(ours: Decoding, theirs: Theirs) -> float:
    """The largest difference of their logits after one token, over the largest logit."""
    decoder = ours.model.model
    found = decoder.logits(decoder(theirs.next_B1, cache=ours.cache))[:, -1].float()
    ours.rewind(1)
    wanted = theirs.logits(theirs.next_B1).float()
    theirs.take_back(1)
    return float((found - wanted).abs().max() / wanted.abs().max())


def compare(rivals: dict[str, Callable[[], None]], rounds: int) -> dict[str, Any]:
    """Seconds of a step of each, and how many times as long as ours the others take."""
    seconds = in_turns(rivals, rounds)
    steps = {f"{name}_step": median(turns) / STEPS for name, turns in seconds.items()}
    return steps | {name: ratio(turns, seconds["ours"]) for name, turns in seconds.items() if name != "ours"}


def beside_mha(dtype: str, rounds: int, batch: int = 32, context: int = 2048) -> dict[str, Any]:
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_position_embeddings=4096,
    )
    theirs = GPTNeoXForCausalLM(config).to(DTYPES[dtype]).eval()
    ours = MLKVForCausalLM.from_shape(NEOX, MLKV_3, seed=0, dtype=DTYPES[dtype]).eval()
    static = Theirs(theirs, filled(theirs, mha(6, 8), batch, context, "static"), batch, context)
    return compare({"ours": Ours(decoding(ours, batch, context)).turn, "gpt_neox": static.turn}, rounds)


def same_layout(dtype: str, rounds: int, batch: int, context: int = 2048) -> dict[str, Any]:
    model, theirs = sharing_pair(LLAMA, MLKV_3, DTYPES[dtype])
    ours = decoding(model, batch, context)
    rivals: dict[str, Callable[[], None]] = {"ours": Ours(ours).turn}
    differences = []
    for kind in ("static", "dynamic"):
        rival = Theirs(theirs, filled(theirs, MLKV_3, batch, context, kind), batch, context)
        differences.append(difference(ours, rival))
        rivals[kind] = rival.turn
    return {"difference": max(differences)} | compare(rivals, rounds)


def compiled_gqa(dtype: str, rounds: int, batch: int = 8, context: int = 2032) -> dict[str, Any]:
    model, theirs = sharing_pair(LLAMA, GQA_2, DTYPES[dtype])
    eager = decoding(model, batch, context)
    rivals = {
        kind: Theirs(theirs, filled(theirs, GQA_2, batch, context, cache), batch, context, kind == "compiled")
        for kind, cache in (("eager_static", "static"), ("eager_dynamic", "dynamic"), ("compiled", "static"))
    }
    differences = [difference(eager, rival) for rival in rivals.values()]
    turns = {name: rival.turn for name, rival in rivals.items()}
    ours = {"ours": Ours(decoding(model, batch, context, compiled=True)).turn, "ours_eager": Ours(eager).turn}
    return {"difference": max(differences)} | compare(ours | turns, rounds)


def on_cpu(part: str, rounds: int, dtypes: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "steps_of_a_turn": STEPS, "vocabulary": VOCABULARY}
    for dtype in dtypes:
        if part in ("all", "mha"):
            found[f"mha_{dtype}"] = beside_mha(dtype, rounds)
        for batch in (8, 32):
            if part in ("all", "same"):
                found[f"same_{dtype}_{batch}"] = same_layout(dtype, rounds, batch)
        if part in ("all", "compiled"):
            found[f"compiled_{dtype}"] = compiled_gqa(dtype, rounds)
    return found | headlines(found)


def headlines(found: dict[str, Any]) -> dict[str, float]:
    """The numbers that claims are made of: of several cells the one that is worst for us."""
    numbers = {f"{name}_ratio": cell["gpt_neox"].median for name, cell in found.items() if name.startswith("mha_")}
    lows = [
        cell[kind].low or cell[kind].median
        for name, cell in found.items()
        if name.startswith("same_")
        for kind in ("static", "dynamic")
    ]
    if lows:
        numbers["same_lowest"] = min(lows)
    if cell := found.get("compiled_fp32"):
        numbers["compiled_ratio"] = cell["compiled"].median
        numbers["compiled_ratio_to_faster"] = min(
            cell[kind].median for kind in ("compiled", "eager_static", "eager_dynamic")
        )
    return numbers


def on_cuda(rounds: int, batch: int = 256, context: int = 2048) -> dict[str, Any]:
    """Each layout's fastest step, as a share of a copy's bandwidth, and what it is made of."""
    found: dict[str, Any] = {"batch": batch, "context": context, "copy_gb_per_second": copy_speed(rounds)}
    for name, heads in (("mha", 12), ("mqa", 1)):
        layout = KVLayout(tuple(range(12)), (heads,) * 12, 12)
        model = MLKVForCausalLM.from_shape(PYTHIA_160M, layout, seed=0, dtype=torch.bfloat16).to("cuda").eval()
        moved = sum(p.numel() * p.element_size() for p in model.parameters()) - model.model.embed.weight.nbytes
        for mode, seconds in step_seconds(model, batch, context, rounds):
            cache = batch * context * layout.kv_bytes_per_token(64, 2)
            found[f"{name}_{mode}_step"] = seconds
            found[f"{name}_{mode}_share"] = (moved + cache) / 1e9 / seconds / found["copy_gb_per_second"]
        found[f"{name}_share"] = max(found[f"{name}_{mode}_share"] for mode in ("eager", "compiled"))
        del model
        torch.cuda.empty_cache()
    return found


def copy_speed(rounds: int, size: int = 2**31) -> float:
    """Gigabytes per second that a copy on the device reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / 1e9 / median(timed(lambda: target.copy_(source), rounds))


def step_seconds(model: MLKVForCausalLM, batch: int, context: int, rounds: int) -> Iterator[tuple[str, float]]:
    """Of a step, compiled and not. One cache at a time: two of MHA would not fit a smaller device."""
    for mode in ("eager", "compiled"):
        made = decoding(model, batch, context, compiled=mode == "compiled")
        yield mode, median(timed(Ours(made).turn, rounds)) / STEPS
        del made
        torch.compiler.reset()  # a compiled step keeps its cache
        torch.cuda.empty_cache()


def timed(work: Callable[[], object], rounds: int, warmups: int = 4) -> list[float]:
    """Seconds until the device has done each."""
    seconds = []
    for number in range(-warmups, rounds):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if number >= 0:
            seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--part", choices=("all", "mha", "same", "compiled"), default="all")
    parser.add_argument("--dtypes", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    where = circumstances()
    if options.device == "cuda":
        report("decode-cuda", where, on_cuda(options.rounds), options.save)
        return
    torch.set_num_threads(options.threads)
    report("decode", where, on_cpu(options.part, options.rounds, tuple(options.dtypes)), options.save)


if __name__ == "__main__":
    main()
