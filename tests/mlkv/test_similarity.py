"""Similarity of layers and heads: each measure against its definition, and the damage against a decoder that shares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from torch.nn import functional

from mlkv.context import Interrupted, StepFailed
from mlkv.evaluate.bits import Windows
from mlkv.families.config import layout_of, shape_of
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import KINDS, KVLayout, Latent, mha
from mlkv.positions import rotate
from mlkv.recipes import SimilarityRecipe
from mlkv.similarity import measures
from mlkv.similarity.measures import Alignment, Cosine, Distance, Divergence, passes
from mlkv.similarity.recording import record
from mlkv.similarity.results import DAMAGE, DISTANCE, MEASURES, Floats, Similarity, errors
from mlkv.similarity.step import check_comparable, compare, full_windows, queries
from mlkv.similarity.step import run as run_similarity
from tests.support.matrix import FAMILY_CONFIGS, LAYOUTS, VOCAB
from tests.support.tiny import SHAPE, context, make_corpus

IDS = torch.randint(1, VOCAB, (3, 20), generator=torch.Generator().manual_seed(5))
WINDOWS = Windows(IDS.numpy(), np.ones((3, 19), bool), np.ones((3, 19), np.int64))
RECIPE = SimilarityRecipe(windows=3, queries=4, batch_size=2)
UNLIKE_LAYOUTS = ("gqa", "keep_ends", "explicit", "kv_apart")
UNLIKE_FAMILIES = ("gpt_neox", "gpt2", "gemma3", "qwen2_windows")
"""Rotated in part, not at all, differently from layer to layer, and with windows."""


EVERY_FAMILY = pytest.mark.parametrize("family", FAMILY_CONFIGS)


def base(family: str, layout: KVLayout | None = None) -> MLKVForCausalLM:
    config = FAMILY_CONFIGS[family]
    model = MLKVForCausalLM.from_shape(shape_of(config), layout or layout_of(config), seed=11).eval()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def random(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


# --- measures -----------------------------------------------------------------------------------------------------


def gram_cka(x: Tensor, y: Tensor) -> float:
    """By its definition: HSIC of centred Gram matrices `[tokens, tokens]`."""
    n = len(x)
    centring = torch.eye(n).double() - 1 / n
    k, m = (centring @ (each.double() @ each.double().mT) @ centring for each in (x, y))
    return float((k * m).sum() / ((k * k).sum() * (m * m).sum()).sqrt())


@settings(max_examples=15)
@given(st.integers(0, 99), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 5))
def test_cka_is_that_of_centred_gram_matrices(seed: int, heads: list[int], width: int, batches: int) -> None:
    layers = [50 + 3 * random(seed + i, batches, 2, count, 7, width) for i, count in enumerate(heads)]
    alignment, at_once = Alignment(heads), [(i, j) for i in range(len(heads)) for j in range(i, len(heads))]
    for pairs in (at_once[::2], at_once[1::2]):  # in two passes over the text
        for batch in range(batches):
            alignment.add([layer[batch] for layer in layers], pairs)
        alignment.end_pass()
    of_layers, of_heads = alignment.cka()
    whole = [layer.permute(0, 1, 3, 2, 4).flatten(3).flatten(0, 2) for layer in layers]
    each = [layer[:, :, head].flatten(0, 2) for layer in layers for head in range(layer.shape[2])]
    for found, features in ((of_layers, whole), (of_heads, each)):
        expected = torch.tensor([[gram_cka(x, y) for y in features] for x in features]).double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_cka_does_not_see_what_turns_scales_or_moves_features() -> None:
    x = random(0, 4, 1, 30, 6)
    turned = torch.linalg.qr(random(1, 6, 6))[0]
    alignment = Alignment([1, 1, 1])
    alignment.add([x, 3 * x @ turned + 7, torch.ones_like(x)], [(i, j) for i in range(3) for j in range(i, 3)])
    alignment.end_pass()
    cka, _ = alignment.cka()
    assert float(cka[0, 1]) == pytest.approx(1, abs=1e-5)
    assert not cka[2].any(), "features that do not vary are like nothing"


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 3), st.integers(1, 3))
def test_cosines_and_distances_are_means_over_tokens(seed: int, heads: int, batches: int) -> None:
    layers = [random(seed + i, batches, 2, heads, 5, 4) for i in range(3)]
    cosine, distance = Cosine(), Distance()
    for batch in range(batches):
        cosine.add([layer[batch] for layer in layers])
        distance.add([layer[batch] for layer in layers], [2 * layer[batch] for layer in layers])
    of_layers, of_heads = cosine.means()
    apart = distance.distances()
    assert of_layers is not None
    assert apart is not None
    for i, x in enumerate(layers):
        for j, y in enumerate(layers):
            one_whole, other_whole = (z.permute(0, 1, 3, 2, 4).flatten(3) for z in (x, y))
            whole = functional.cosine_similarity(one_whole, other_whole, dim=-1).mean()
            torch.testing.assert_close(of_layers[i, j], whole.double(), rtol=1e-5, atol=1e-6)
            means = (x.flatten(0, 1).mean(0) - y.flatten(0, 1).mean(0)).norm(dim=-1).mean()
            torch.testing.assert_close(apart[i, j], 1.5 * means.double(), rtol=1e-5, atol=1e-6)
            for g in range(heads):
                for h in range(heads):
                    one = functional.cosine_similarity(x[:, :, g], y[:, :, h], dim=-1).mean()
                    torch.testing.assert_close(
                        of_heads[i * heads + g, j * heads + h], one.double(), rtol=1e-5, atol=1e-6
                    )


def test_vectors_of_different_lengths_have_no_cosine_and_no_distance() -> None:
    layers = [random(0, 2, 1, 5, 4), random(1, 2, 2, 5, 4)]
    cosine, distance = Cosine(), Distance()
    cosine.add(layers)
    distance.add(layers, layers)
    assert cosine.means()[0] is None
    assert cosine.means()[1].shape == (3, 3)
    assert distance.distances() is None


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 3))
def test_divergence_is_scipys(seed: int, members: int, batches: int) -> None:
    weights = (3 * random(seed, batches, members, 5, 6)).softmax(-1)
    weights[..., -1] = 0  # later tokens, which nothing attends to
    weights = weights / weights.sum(-1, keepdim=True)
    divergence = Divergence()
    for batch in weights:
        divergence.add(batch)
    found = divergence.means()
    for i in range(members):
        for j in range(members):
            one, other = (weights[:, k].flatten(0, 1).double().numpy() for k in (i, j))
            expected = float((jensenshannon(one, other, axis=1, base=2) ** 2).mean())
            assert float(found[i, j]) == pytest.approx(np.nan_to_num(expected), abs=1e-6)


def test_sums_that_do_not_fit_are_made_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = base("gpt_neox").model
    once = compare(model, WINDOWS, RECIPE)
    monkeypatch.setattr(measures, "SUMS_AT_ONCE", 8 * 40**2)
    groups, widths = passes([32, 16, 8]), (32, 16, 8)
    assert len(groups) > 1
    assert sorted(pair for group in groups for pair in group) == [(i, j) for i in range(3) for j in range(i, 3)]
    assert all(len(group) == 1 or 8 * sum(widths[i] * widths[j] for i, j in group) <= 8 * 40**2 for group in groups)
    seen: list[tuple[int, int]] = []
    again = compare(model, WINDOWS, RECIPE, lambda done, of: seen.append((done, of)))
    assert seen[-1][0] == seen[-1][1] > len(IDS)
    for name, values in once.layers.items():
        np.testing.assert_allclose(again.layers[name], values, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(again.excess, once.excess)


# --- what is compared ---------------------------------------------------------------------------------------------


@EVERY_FAMILY
def test_what_is_recorded_is_what_every_family_attends_to(family: str) -> None:
    model = base(family)
    attentions: list[Tensor] = []
    with torch.no_grad():
        model.model(IDS, attentions=attentions)
    done = record(model.model, IDS)
    chosen = torch.tensor([1, 7, 19])
    for layer, weights_BHTT in zip(done.layers, attentions, strict=True):
        kv_heads = layer.keys.shape[1]
        torch.testing.assert_close(
            layer.weights(chosen), weights_BHTT.unflatten(1, (kv_heads, -1)).mean(2)[:, :, chosen]
        )
        if layer.unrotated is not None:
            torch.testing.assert_close(rotate(layer.unrotated, layer.tokens.query_angles), layer.keys)
    assert any(layer.unrotated is not None for layer in done.layers) == (model.shape.positions == "rotary")


def sharing(model: MLKVForCausalLM, reader: int, source: int) -> MLKVForCausalLM:
    """The decoder in which `reader`, and whoever reads its keys and values, reads those that `source` reads."""
    layout = model.layout
    sources, heads = {}, {}
    for kind in KINDS:
        part = layout.part(kind)
        owner = part.kv_source_layers[source]
        sources[kind] = tuple(owner if reader in (i, s) else s for i, s in enumerate(part.kv_source_layers))
        heads[kind] = tuple(part.heads_of(i) for i in sorted(set(sources[kind])))
    changed = KVLayout(sources["k"], heads["k"], layout.heads, None, sources["v"], heads["v"])
    other = MLKVForCausalLM.from_shape(model.shape, changed, seed=0).eval()
    missing, _ = other.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return other


@pytest.mark.parametrize("name", UNLIKE_LAYOUTS)
def test_damage_is_the_loss_of_a_decoder_that_shares(name: str) -> None:
    check_damage(base("llama_bias_tied", LAYOUTS[name]))


@pytest.mark.parametrize("family", UNLIKE_FAMILIES)
def test_damage_of_every_family(family: str) -> None:
    check_damage(base(family))


def nats(model: MLKVForCausalLM) -> Floats:
    with torch.no_grad():
        losses = functional.cross_entropy(model(IDS).logits[:, :-1].mT, IDS[:, 1:], reduction="none")
    summed: Floats = losses.double().sum(1).numpy()
    return summed


def check_damage(model: MLKVForCausalLM) -> None:
    found = compare(model.model, WINDOWS, RECIPE)
    base_nats = nats(model)
    np.testing.assert_allclose(found.nats, base_nats, rtol=1e-5)
    for reader, source in ((1, 0), (3, 1), (5, 2)):
        shared = nats(sharing(model, reader, source)) - base_nats
        np.testing.assert_allclose(found.excess[:, reader, source], shared, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", UNLIKE_FAMILIES)
def test_what_must_be_equal_is(family: str) -> None:
    model = base(family).model
    found, rotates = compare(model, WINDOWS, RECIPE), model.shape.positions == "rotary"
    assert [*found.layers] == [name for name in MEASURES if name in found.layers]
    assert set(found.heads) == set(found.layers) - {DISTANCE}
    assert {*found.layers} == {name for name in MEASURES if rotates or "unrotated" not in name}
    for name, values in [*found.layers.items(), *found.heads.items()]:
        of_itself = 0.0 if name in ("attention_divergence", DISTANCE) else 1.0
        np.testing.assert_allclose(values.diagonal(), of_itself, atol=1e-5)
        np.testing.assert_allclose(values, values.T, atol=1e-6)
        low = -1.0 if name.startswith("cosine") else 0.0
        assert values.min() >= low - 1e-6
        assert name == DISTANCE or values.max() <= 1 + 1e-6
    assert found.damage is not None
    assert not found.damage.diagonal().any()
    assert np.abs(found.damage).max() > 1e-3
    names = found.head_names("cka_keys")
    assert len(names) == len(found.heads["cka_keys"]) == sum(found.key_heads)


def test_a_reader_is_like_its_owner_and_loses_nothing_by_it() -> None:
    found = compare(base("gpt_neox", LAYOUTS["mlkv"]).model, WINDOWS, RECIPE)
    sources = LAYOUTS["mlkv"].kv_source_layers
    assert found.damage is not None
    for layer, owner in enumerate(sources):
        for kind in ("keys", "values", "unrotated_keys"):
            assert found.layers[f"cka_{kind}"][layer, owner] == pytest.approx(1, abs=1e-5)
        assert found.damage[layer, owner] == 0


def test_batches_change_nothing_but_rounding() -> None:
    model = base("llama").model
    one, all_at_once = (compare(model, WINDOWS, replace(RECIPE, batch_size=size)) for size in (1, 3))
    for name, values in one.layers.items():
        np.testing.assert_allclose(all_at_once.layers[name], values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(all_at_once.excess, one.excess, rtol=1e-3, atol=1e-3)
    assert len(queries(WINDOWS, replace(RECIPE, queries=10_000))) == 19


def test_errors_are_those_of_a_ratio_over_windows() -> None:
    parts, weights = random(0, 400, 2).double().numpy(), 50 + random(1, 400).double().numpy()
    drawn = np.random.default_rng(0).integers(0, 400, (2000, 400))
    spread = (parts[drawn].sum(1) / weights[drawn].sum(1)[:, None]).std(0)
    np.testing.assert_allclose(errors(parts, weights), spread, rtol=0.1)


# --- the step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (KVLayout((0, 1), (2, 2), 2, Latent((8, 8), 0)), "latents"),
        (KVLayout((1, 1), (2,), 2), "read from above"),
    ],
)
def test_what_cannot_be_compared_says_so(layout: KVLayout, reason: str) -> None:
    with pytest.raises(ValueError, match=f"similarity: .*{reason}.*; set similarity=none"):
        check_comparable(MLKVForCausalLM.from_shape(SHAPE, layout, seed=0).model)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("similarity"))


def run_step(corpus: Path, folder: Path, recipe: SimilarityRecipe, **control: Any) -> Similarity:
    MLKVForCausalLM.from_shape(SHAPE, mha(2, 2), seed=1).save_pretrained(folder / "base")
    (folder / "out").mkdir(exist_ok=True)
    outcome = run_similarity(recipe, folder / "out", context(folder, **control), base=folder / "base", corpus=corpus)
    found = Similarity.load(folder / "out")
    assert outcome.facts["windows"] == len(found.tokens) or not recipe.damage
    names = [row.metric for row in outcome.metrics]
    expected = [*found.layers, *([DAMAGE, "damage_of_next", "nats_per_token"] if recipe.damage else [])]
    assert names == expected
    return found


def test_the_step_writes_what_it_found(corpus: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    found = run_step(corpus, tmp_path, SimilarityRecipe(windows=5, queries=4, batch_size=2), rows=rows)
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert found.excess.shape == (5, 2, 2)
    assert found.damage_errors is not None
    without = run_step(corpus, tmp_path, SimilarityRecipe(windows=5, queries=4, damage=False))
    assert without.damage is None
    assert without.damage_errors is None
    np.testing.assert_allclose(without.layers["cka_keys"], found.layers["cka_keys"], rtol=1e-4)
    everything = full_windows(corpus, 10**6)
    assert (everything.ids[:, 1:][everything.counted] != 0).all()


def test_it_stops_when_it_should_and_names_a_damaged_file(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped after 0 of 5 windows"):
        run_step(corpus, tmp_path, SimilarityRecipe(windows=5), should_stop=lambda: True)
    (tmp_path / "out" / "similarity.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="is damaged"):
        Similarity.load(tmp_path / "out")


def test_a_base_that_does_not_know_the_tokens_is_refused(corpus: Path, tmp_path: Path) -> None:
    shape = replace(SHAPE, vocab_size=300)
    MLKVForCausalLM.from_shape(shape, mha(2, 2), seed=1).save_pretrained(tmp_path / "base")
    with pytest.raises(StepFailed, match="the model takes 300 at most"):
        run_similarity(SimilarityRecipe(windows=5), tmp_path, context(tmp_path), base=tmp_path / "base", corpus=corpus)
