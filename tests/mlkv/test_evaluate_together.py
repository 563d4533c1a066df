"""Several evaluations in one process: each scores as in a process of its own, and little is made twice."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file, save_file

from mlkv.context import MetricRow, StepFailed
from mlkv.evaluate import agreement, held_out_pass, task_cache
from mlkv.evaluate import step as evaluate
from mlkv.evaluate.harness_model import HarnessLM
from mlkv.evaluate.models import LastModel, LastTokenizer
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.patterns import make
from mlkv.recipes import EvaluateRecipe
from tests.support.evaluations import outcome_of, score
from tests.support.tiny import SHAPE


@pytest.mark.parametrize("task", ["bits_per_byte", "heldout_choice4"])
def test_scores_do_not_depend_on_the_batch(task: str, corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = EvaluateRecipe(task=task, limit=12, precision="fp32")
    found = [score(replace(recipe, batch_size=size), tmp_path, checkpoint, corpus) for size in (3, 32, "auto")]
    for scores in found[1:]:
        for name, row in scores.items():
            assert row.value == pytest.approx(found[0][name].value, rel=1e-6)


def sweep_of(checkpoint: Path, folder: Path) -> list[Path]:
    """A checkpoint, another of its shape and one with another layout."""
    found = [checkpoint]
    for i, layout in enumerate([make("even", 2, 2, 1, 1), mha(2, 2)]):
        other = shutil.copytree(checkpoint, folder / f"other{i}")
        MLKVForCausalLM.from_shape(SHAPE, layout, seed=10 + i).save_pretrained(other)
        found.append(other)
    return found


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    forget(monkeypatch)
    yield
    task_cache.forget()


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process that begins does not have."""
    monkeypatch.setattr(evaluate, "CHECKPOINT", LastModel())
    monkeypatch.setattr(evaluate, "TOKENIZER", LastTokenizer())
    monkeypatch.setattr(agreement, "BASE", LastModel())
    monkeypatch.setattr(held_out_pass, "_last", {})
    task_cache.forget()


TASKS_OF_ALL = ("bits_per_byte", "agreement", "heldout_choice4", "heldout_cloze")
RECIPES = [EvaluateRecipe(task=task, limit=3) for task in TASKS_OF_ALL]
RECIPES += [EvaluateRecipe(task=task, limit=3, cache="int8") for task in TASKS_OF_ALL[1:3]]


def test_checkpoints_of_one_process_score_as_each_in_its_own(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; the questions, their tokens and the base are made once."""
    checkpoints = sweep_of(checkpoint, tmp_path)

    def all_of_them(in_between: Callable[[], None]) -> list[list[MetricRow]]:
        found = []
        for each in checkpoints:
            for recipe in RECIPES:
                in_between()
                found.append(outcome_of(recipe, tmp_path, each, corpus, base=checkpoint).metrics)
        return found

    alone = all_of_them(lambda: forget(monkeypatch))
    forget(monkeypatch)
    made, texts = counted(monkeypatch)
    assert all_of_them(lambda: None) == alone
    assert (evaluate.CHECKPOINT.loads, evaluate.CHECKPOINT.builds) == (3, 2)
    assert (agreement.BASE.loads, agreement.BASE.builds) == (1, 1)
    assert sorted(made) == ["heldout_choice4", "heldout_cloze"]
    assert len(texts) == len(set(texts))


def counted(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Tasks whose questions are made, and texts that are encoded, from now on."""
    made: list[str] = []
    texts: list[str] = []
    build, encode = ConfigurableTask.build_all_requests, HFLM.tok_encode

    def build_all_requests(task: Any, **given: Any) -> None:
        made.append(task.config.task)
        build(task, **given)

    def tok_encode(lm: Any, text: str, **given: Any) -> Any:
        texts.append(text)
        return encode(lm, text, **given)

    monkeypatch.setattr(ConfigurableTask, "build_all_requests", build_all_requests)
    monkeypatch.setattr(HFLM, "tok_encode", tok_encode)
    return made, texts


def test_tasks_of_a_checkpoint_share_its_model_and_its_pass_over_the_held_out_text(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    for i, task in enumerate(TASKS_OF_ALL):
        score(EvaluateRecipe(task=task, limit=4), tmp_path, checkpoint, corpus, base=checkpoint)
        if i == 0:
            model = evaluate.CHECKPOINT.of(checkpoint).model
            model.register_forward_pre_hook(lambda module, inputs: passes.append(len(inputs[0])))
        assert bool(passes) == (i > 1), "agreement, the second, finds what bits per byte read"
    assert (evaluate.CHECKPOINT.loads, agreement.BASE.loads) == (1, 1)
    monkeypatch.setattr(held_out_pass, "KEPT_BYTES", 0)
    for _ in range(2):
        passes.clear()
        score(EvaluateRecipe(task="agreement", limit=5), tmp_path, checkpoint, corpus, base=checkpoint)
        assert sum(passes) == 5, "too much to keep is computed anew"


def test_examples_before_a_question_are_the_same_for_the_next_checkpoint(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    ask = HarnessLM.loglikelihood

    def loglikelihood(lm: HarnessLM, requests: Any) -> Any:
        seen.append([request.args[0] for request in requests])
        return ask(lm, requests)

    monkeypatch.setattr(HarnessLM, "loglikelihood", loglikelihood)
    recipe = EvaluateRecipe(task="heldout_cloze", few_shot=1, limit=3)
    for each in (recipe, recipe, replace(recipe, seed=7), replace(recipe, few_shot=0), recipe):
        score(each, tmp_path, checkpoint, corpus)
    assert seen[0] == seen[1] == seen[4]
    assert seen[2] != seen[0]
    assert max(map(len, seen[3])) < min(map(len, seen[0]))


def test_a_checkpoint_that_cannot_be_read_leaves_no_model_behind(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = EvaluateRecipe(task="bits_per_byte", limit=3)
    expected = score(recipe, tmp_path, checkpoint, corpus)
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(iter(weights))
    weights[name].fill_(math.nan)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    for _ in range(2):
        with pytest.raises(StepFailed, match=f"weight {name} is not finite"):
            score(recipe, tmp_path, broken, corpus)
    assert score(recipe, tmp_path, checkpoint, corpus) == expected
