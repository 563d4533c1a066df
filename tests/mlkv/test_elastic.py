"""Elastic training: a layout that is cut from the checkpoint is what was trained, and the sampling is the same however
a run is cut up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mlkv.context import Interrupted, Row
from mlkv.convert import calibration as calibration_step
from mlkv.convert.calibration import calibrate
from mlkv.convert.heads import computed
from mlkv.convert.step import convert
from mlkv.hf import MLKVForCausalLM, load_checked
from mlkv.layout import KVLayout, mha
from mlkv.patterns import make
from mlkv.recipes import CalibrateRecipe, ConvertRecipe
from mlkv.shape import DecoderShape
from mlkv.train.elastic import Elastic, ElasticDecoder, align, coarsest
from mlkv.train.sampling import Sampling, layouts_of
from mlkv.train.step import run
from mlkv.training_recipes import ElasticRecipe
from tests.support import tiny
from tests.support.read_back import present
from tests.support.tiny import context, make_corpus

SHAPE = DecoderShape(vocab_size=61, width=24, layers=4, heads=4, head_dim=6, mlp_width=32, context=16, init_std=0.2)
BASE = mha(4, 4)
LAYOUTS = layouts_of(ElasticRecipe(steps=1), BASE)
IDS = torch.randint(0, 61, (6, 12), generator=torch.Generator().manual_seed(0))

SHAPES = {
    "neox": SHAPE,
    "llama": replace(
        SHAPE, norm="rmsnorm", gated_mlp=True, activation="silu", attention_bias=False, rotary_fraction=1.0
    ),
    "gpt2": replace(SHAPE, positions="learned", parallel_residual=False, tied=True),
    "kv_norm": replace(SHAPE, kv_norm=True),
}


def base_of(
    shape: DecoderShape = SHAPE, layout: KVLayout = BASE, dtype: torch.dtype = torch.float64
) -> MLKVForCausalLM:
    return MLKVForCausalLM.from_shape(shape, layout, seed=1, dtype=dtype).eval()


def elastic_of(base: MLKVForCausalLM, layouts: tuple[KVLayout, ...] = LAYOUTS, merge: str = "mean") -> MLKVForCausalLM:
    elastic = MLKVForCausalLM.from_shape(base.shape, base.layout, seed=2)
    decoder = ElasticDecoder(base.model, layouts, merge)
    elastic.model = nn.Module.to(decoder, dtype=base.dtype)
    return elastic


def loss_of(model: MLKVForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(ids, labels=ids, loss_only=True).loss
    return loss


@pytest.mark.parametrize(
    ("shape", "merge"),
    [*((shape, "mean") for shape in SHAPES.values()), (SHAPE, "pairwise"), (SHAPE, "first")],
    ids=[*SHAPES, "pairwise", "first"],
)
def test_a_cut_computes_what_was_trained(shape: DecoderShape, merge: str) -> None:
    base = base_of(shape)
    elastic = elastic_of(base, merge=merge)
    elastic.model.chosen = torch.arange(len(LAYOUTS)).repeat(2)
    trained = elastic(IDS[:1].expand(2 * len(LAYOUTS), -1)).logits
    for number, layout in enumerate(LAYOUTS):
        cut = convert(base, layout, ConvertRecipe(merge=merge)).eval()
        expected = cut(IDS[:1]).logits[0]
        for row in (number, number + len(LAYOUTS)):
            assert torch.allclose(trained[row], expected, atol=1e-12, rtol=0), layout


def test_a_cut_with_wider_mlps_computes_it_too() -> None:
    base = base_of()
    elastic = elastic_of(base)
    elastic.model.chosen = torch.full((6,), len(LAYOUTS) - 1)
    cut = convert(base, LAYOUTS[-1], ConvertRecipe(merge="mean", widening="split")).eval()
    assert cut.shape.mlp_width > base.shape.mlp_width
    assert torch.allclose(elastic(IDS).logits, cut(IDS).logits, atol=1e-12, rtol=0)


def test_grouped_queries_and_different_head_counts() -> None:
    base = base_of(layout=KVLayout((0, 1, 2, 3), (2, 4, 2, 4), 4))
    layouts = layouts_of(ElasticRecipe(steps=1), base.layout)
    assert layouts[0] == base.layout
    assert {layout.kv_heads[0] for layout in layouts[1:]} == {1, 2}
    elastic = elastic_of(base, layouts)
    for number, layout in enumerate(layouts):
        elastic.model.chosen = torch.full((6,), number)
        cut = convert(base, layout, ConvertRecipe(merge="mean")).eval()
        assert torch.allclose(elastic(IDS).logits, cut(IDS).logits, atol=1e-12, rtol=0), layout


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_converted_model(checkpointing: bool) -> None:
    """A weight's gradient is that of the converted model's weight, and a head's share of the gradient of the mean that
    it goes into is one over the number of heads."""
    base = base_of()
    elastic = elastic_of(base).train()
    elastic.model.gradient_checkpointing = checkpointing
    for number in (0, 3, len(LAYOUTS) - 1):
        layout = LAYOUTS[number]
        elastic.zero_grad()
        elastic.model.chosen = torch.full((6,), number)
        loss_of(elastic, IDS).backward()
        cut = convert(base, layout, ConvertRecipe(merge="mean")).train()
        loss_of(cut, IDS).backward()
        expected = {name: present(weight.grad) for name, weight in cut.model.named_parameters()}
        for name, weight in elastic.model.named_parameters():
            _blocks, layer, rest = name.split(".", 2) if name.startswith("blocks.") else ("", "", "")
            if ".attention.k." in name or ".attention.v." in name:
                owner = layout.kv_source_layers[int(layer)]
                merged = 4 // layout.heads_of(owner) * (1 + len(layout.readers(owner)))
                of_mean = expected[f"blocks.{owner}.{rest}"].unflatten(0, (layout.heads_of(owner), 1, -1)) / merged
                wanted = of_mean.expand(-1, 4 // layout.heads_of(owner), *of_mean.shape[2:]).flatten(0, 2)
            else:
                wanted = expected[name]
            assert torch.allclose(present(weight.grad), wanted, atol=1e-9, rtol=1e-6), (name, layout)


def test_a_batch_of_several_layouts_is_the_mean_of_its_rows() -> None:
    elastic = elastic_of(base_of())
    elastic.model.chosen = torch.tensor([3, 0, 3, 5, 1, 0])
    together = loss_of(elastic, IDS)
    alone = []
    for row, number in enumerate([3, 0, 3, 5, 1, 0]):
        elastic.model.chosen = torch.tensor([number])
        alone.append(loss_of(elastic, IDS[row : row + 1]))
    assert torch.allclose(together, torch.stack(alone).mean(), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [(SHAPES["neox"], BASE), (SHAPES["llama"], KVLayout((0, 1, 2, 3), (2, 2, 2, 2), 4)), (SHAPES["gpt2"], BASE)],
    ids=["neox", "llama with grouped queries", "gpt2"],
)
def test_alignment_keeps_the_function_and_brings_heads_together(shape: DecoderShape, layout: KVLayout) -> None:
    base = base_of(shape, layout)
    before = base(IDS).logits
    calibration = calibrate(base_of(shape, layout, torch.float32), IDS)

    def spread(kind: str) -> float:
        """Of what all heads compute around their mean."""
        state, heads = base.model.state_dict(), layout.kv_heads[0]
        computed_HNK = torch.cat([computed(state, i, kind, calibration.inputs[i], heads) for i in range(4)])
        return float((computed_HNK - computed_HNK.mean(0)).square().sum())

    apart = {kind: spread(kind) for kind in "kv"}
    align(base.model, layouts_of(ElasticRecipe(steps=1), layout), calibration)
    assert torch.allclose(base(IDS).logits, before, atol=2e-5 * float(before.abs().max()), rtol=0)
    assert all(spread(kind) < 0.9 * apart[kind] for kind in "kv")


def test_the_coarsest_layout_joins_what_any_merges() -> None:
    gqa, cla = make("even", 4, 4, 4, 2), make("even", 4, 4, 2, 4)
    assert coarsest([BASE]) == BASE
    assert coarsest([BASE, gqa]) == gqa
    assert coarsest([BASE, gqa, cla]) == make("even", 4, 4, 2, 2)
    pizza = KVLayout((0, 1, 1, 3), (4, 4, 4), 4)
    assert coarsest([cla, pizza]) == KVLayout((0, 0, 0, 0), (4,), 4)


def test_every_layout_has_its_turn_and_resuming_changes_none() -> None:
    sampling = Sampling(layouts=5, seed=7, per_step=2, batch_size=4)
    numbers = [sampling.number_of(i) for i in range(4 * 5 * 6)]
    steps = [numbers[i : i + 4] for i in range(0, len(numbers), 4)]
    assert all(step[0] == step[1] and step[2] == step[3] for step in steps)
    draws = [number for step in steps for number in (step[0], step[2])]
    assert all(sorted(draws[i : i + 5]) == [0, 1, 2, 3, 4] for i in range(0, len(draws), 5))
    assert set(Counter(draws).values()) == {12}
    again = Sampling(layouts=5, seed=7, per_step=2, batch_size=4)
    assert [again.number_of(i) for i in reversed(range(len(numbers)))] == numbers[::-1]
    assert [Sampling(5, 8, 2, 4).number_of(i) for i in range(len(numbers))] != numbers


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), task_items=0)


@pytest.fixture(scope="module")
def calibrated(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base of random weights and its calibration."""
    base, calibration = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("calibration")
    MLKVForCausalLM.from_shape(tiny.SHAPE, mha(2, 2), seed=1).save_pretrained(base)
    calibration_step.run(CalibrateRecipe(tokens=400), calibration, context(base / "work"), base=base, corpus=corpus)
    return base, calibration


def test_a_stopped_training_goes_on_bit_for_bit(corpus: Path, calibrated: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = ElasticRecipe(
        steps=6, batch_size=4, layouts_per_step=2, lr=3e-3, precision="fp32", save_every=2, log_every=1
    )
    base, calibration = calibrated
    layouts = layouts_of(recipe, mha(2, 2))

    def train(
        name: str, stop: Callable[[], bool] = lambda: False, micro_batch: int | None = None
    ) -> tuple[Path, list[Row]]:
        out, rows = tmp_path / name / "out", list[Row]()
        out.mkdir(parents=True, exist_ok=True)
        elastic = Elastic(layouts, "mean", recipe.layouts_per_step, calibration)
        ctx = context(tmp_path / name / "work", rows, stop)
        run(replace(recipe, micro_batch=micro_batch), out, ctx, corpus=corpus, start=base, elastic=elastic)
        return out, rows

    undisturbed, rows = train("undisturbed")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    polls = iter([False, False, False, True])
    with pytest.raises(Interrupted, match="step 4 of 6"):
        train("stopped", lambda: next(polls))
    resumed, rest = train("stopped")
    assert [row["loss"] for row in rest] == [row["loss"] for row in rows[4:]]
    expected = load_file(undisturbed / "model.safetensors")
    found = load_file(resumed / "model.safetensors")
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    # Smaller micro-batches sample the same layouts, and differ by rounding alone.
    smaller, _ = train("smaller", micro_batch=1)
    weights = load_file(smaller / "model.safetensors")
    assert all(torch.allclose(weights[name], weight, atol=2e-3) for name, weight in expected.items())
    first = load_file(base / "model.safetensors")
    keys = [name for name in first if ".attention.k.weight" in name]
    assert all(not torch.allclose(first[name], expected[name], atol=1e-3) for name in keys)
    assert load_checked(undisturbed).layout == mha(2, 2)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"kv_layers": (9,)}, r"layout.kv_layers = 9: pattern even on 4 layers takes 1 to 4"),
        ({"kv_heads": (3,)}, r"kv_heads = 3 at layer 0: must divide 4"),
        ({"kv_layers": (4,), "kv_heads": (4,)}, "give no layout but the base's own, MHA-16"),
    ],
)
def test_layouts_that_cannot_be(recipe: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layouts_of(ElasticRecipe(steps=1, **recipe), BASE)  # type: ignore[arg-type]


def test_its_teacher_is_the_base_as_it_was(corpus: Path, calibrated: tuple[Path, Path], tmp_path: Path) -> None:
    """A sequence computed as the base's own layout agrees with the base, however its heads were turned."""
    base, calibration = calibrated
    recipe = ElasticRecipe(steps=1, batch_size=2, lr=1e-3, precision="fp32", log_every=1, teacher="base")
    divergences = {}
    for name, layouts in {"own": (mha(2, 2),), "merged": (make("even", 2, 2, 1, 1),)}.items():
        rows: list[Row] = []
        out = tmp_path / name
        out.mkdir()
        elastic = Elastic(layouts, "mean", 1, calibration)
        run(
            recipe,
            out,
            context(tmp_path / "work" / name, rows),
            corpus=corpus,
            start=base,
            teacher=base,
            elastic=elastic,
        )
        divergences[name] = float(rows[0]["kl"])
    assert abs(divergences["own"]) < 1e-6 < divergences["merged"]


def test_layouts_are_pairs_or_products() -> None:
    def sizes(**lists: tuple[int, ...]) -> set[tuple[int, int]]:
        layouts = layouts_of(ElasticRecipe(steps=1, **lists), BASE)  # type: ignore[arg-type]
        assert layouts[0] == BASE
        return {(layout.kv_layers, layout.kv_heads[0]) for layout in layouts[1:]}

    assert sizes(kv_layers=(4, 2), kv_heads=(1, 4)) == {(4, 1), (2, 4)}
    assert sizes(kv_layers=(4, 2)) == {(4, 1), (4, 2), (2, 1), (2, 2), (2, 4)}
    assert sizes(kv_heads=(1,)) == {(4, 1), (2, 1), (1, 1)}
    assert len(sizes()) == 8


def test_a_base_that_shares_has_no_heads_for_new_owners() -> None:
    shared = make("even", 4, 4, 2, 4)
    assert all(set(layout.owners) <= {0, 2} for layout in layouts_of(ElasticRecipe(steps=1, kv_layers=(1, 2)), shared))
    with pytest.raises(ValueError, match="kv_layers = 4: layer 1 would own keys and values"):
        layouts_of(ElasticRecipe(steps=1, kv_layers=(4,), kv_heads=(1,)), shared)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_layers": (1, 2), "kv_heads": (1,)}, "kv_layers has 2 entries and kv_heads 1: they go in pairs"),
        ({"layouts_per_step": 3}, "layouts_per_step = 3: must divide batch_size 16"),
        ({"strategy": "fsdp"}, "strategy = fsdp: elastic training takes ddp"),
        ({"teacher": "base", "teacher_logits": "stored"}, "teacher_logits = stored: the teacher of an elastic"),
        ({"teacher": "base", "hidden_weight": 0.5}, "hidden_weight = 0.5: an elastic training learns from logits"),
        ({"train": "lora"}, "train = lora: an elastic training merges the weights themselves"),
    ],
)
def test_recipes_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ElasticRecipe(steps=1, **fields)  # type: ignore[arg-type]
