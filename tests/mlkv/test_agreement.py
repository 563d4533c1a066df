"""The task `agreement`: how far a checkpoint's predictions are from its base's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlkv.context import Interrupted, MetricRow, Row, StepFailed
from mlkv.evaluate import outcomes
from mlkv.evaluate import step as evaluate
from mlkv.evaluate.agreement import divergence
from mlkv.evaluate.bits import cut_windows
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.patterns import make
from mlkv.recipes import EvaluateRecipe
from tests.support.read_back import present
from tests.support.tiny import SHAPE, context, make_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    MLKVForCausalLM.from_shape(SHAPE, mha(2, 2), seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other random weights, with an MLKV layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    MLKVForCausalLM.from_shape(SHAPE, make("even", 2, 2, 1, 1), seed=3).save_pretrained(folder)
    return folder


def score(
    folder: Path,
    checkpoint: Path,
    corpus: Path | None,
    base: Path | None,
    rows: list[Row] | None = None,
    **given: object,
) -> dict[str, MetricRow]:
    (folder / "out").mkdir(exist_ok=True)
    recipe = EvaluateRecipe(task="agreement", **{"limit": 5, "precision": "fp32", **given})  # type: ignore[arg-type]
    ctx = context(folder, rows)
    outcome = evaluate.run(recipe, folder / "out", ctx, checkpoint=checkpoint, corpus=corpus, base=base)
    return {row.metric: row for row in outcome.metrics}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_agrees_with_itself(base: Path, corpus: Path, tmp_path: Path, precision: str) -> None:
    same = shutil.copytree(base, tmp_path / "same")
    found = score(tmp_path, same, corpus, base, precision=precision)
    assert (found["agreement"].value, found["kl"].value) == (1.0, 0.0)
    assert (found["agreement"].stderr, found["kl"].stderr) == (0.0, 0.0)


def test_both_are_what_scipy_computes_token_by_token(
    base: Path, checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    found = score(tmp_path, checkpoint, corpus, base, batch_size=2)
    windows = cut_windows(corpus, 5)
    models = [MLKVForCausalLM.from_pretrained(folder, dtype=torch.float64).eval() for folder in (base, checkpoint)]
    with torch.inference_mode():
        ids = torch.from_numpy(windows.ids)
        p, q = (model(ids).logits[:, :-1].double().softmax(-1).numpy()[windows.counted] for model in models)
    agreed, kl = p.argmax(-1) == q.argmax(-1), stats.entropy(p, q, axis=-1)
    assert found["agreement"].value == pytest.approx(agreed.mean())
    assert found["kl"].value == pytest.approx(kl.mean(), rel=1e-4)
    assert found["kl"].n == 5
    # The error over windows: that of a ratio of means, here by the jackknife.
    owner = np.repeat(np.arange(5), windows.counted.sum(-1))
    without = np.array([kl[owner != window].mean() for window in range(5)])
    jackknife = np.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    assert found["kl"].stderr == pytest.approx(jackknife, rel=0.05)


def test_windows_are_those_of_bits_per_byte(base: Path, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    score(tmp_path, checkpoint, corpus, base)
    recipe = EvaluateRecipe(task="bits_per_byte", limit=5)
    evaluate.run(recipe, tmp_path / "out", context(tmp_path), checkpoint=checkpoint, corpus=corpus)
    found = [present(outcomes.read(tmp_path / "out", name)) for name in ("agreement", "kl", "nats_per_token")]
    assert len({each.samples_digest for each in found}) == 1
    assert all(list(each.weights) == list(found[0].weights) for each in found)


def test_the_batch_size_changes_nothing(base: Path, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    one, all_at_once = (score(tmp_path, checkpoint, corpus, base, batch_size=size) for size in (1, 32))
    assert one["kl"].value == pytest.approx(all_at_once["kl"].value, rel=1e-5)
    assert one["agreement"].value == pytest.approx(all_at_once["agreement"].value, abs=0.005)


def test_progress_is_reported_and_a_stop_is_heard(base: Path, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
    rows: list[Row] = []
    score(tmp_path, checkpoint, corpus, base, rows)
    assert rows[-1] == {"step": 5, "steps": 5}
    recipe = EvaluateRecipe(task="agreement", limit=5, batch_size=2)
    ctx = context(tmp_path, should_stop=lambda: True)
    with pytest.raises(Interrupted, match="after 2 of 5"):
        evaluate.run(recipe, tmp_path / "out", ctx, checkpoint=checkpoint, corpus=corpus, base=base)


def test_without_a_base_it_says_so(checkpoint: Path, corpus: Path, base: Path, tmp_path: Path) -> None:
    for text, other in ((corpus, None), (None, base)):
        with pytest.raises(StepFailed, match=r"task = agreement: needs a corpus .* and the base"):
            score(tmp_path, checkpoint, text, other)


LOGITS = st.lists(st.floats(-80, 80, width=32), min_size=4, max_size=4)


@given(LOGITS, LOGITS)
def test_no_divergence_is_negative_and_none_from_itself(p: list[float], q: list[float]) -> None:
    of_p, of_q = torch.tensor([p]), torch.tensor([q])
    assert float(divergence(of_p, of_p)) == 0.0
    found, expected = (
        float(divergence(of_p, of_q)),
        float(stats.entropy(*(x.double().softmax(-1)[0] for x in (of_p, of_q)))),
    )
    assert found >= 0.0
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
