from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from numpy.typing import NDArray
from torch.nn import functional

from mlkv.cache.packing import rounding
from mlkv.cache.quantised import QuantisedCache
from mlkv.context import Interrupted, MetricRow, Row, StepFailed
from mlkv.corpus.blocks import open_blocks
from mlkv.corpus.manifest import read_manifest
from mlkv.corpus.tokenizer import load as load_tokenizer
from mlkv.evaluate import bits, harness, held_out_pass, outcomes
from mlkv.evaluate.batch_size import BatchSize
from mlkv.evaluate.few_shot import own_counts
from mlkv.evaluate.task_names import ITEM_TASKS, RECALL_TASKS, TASKS_FOLDER, check_task, lm_eval_tasks
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.patterns import make
from mlkv.recipes import EvaluateRecipe
from mlkv.signature import of_scores
from tests.support.evaluations import lm_of, outcome_of, score
from tests.support.read_back import present
from tests.support.tiny import SHAPE, context

CHANCE = {"heldout_cloze": 0.0, "heldout_choice4": 0.25, "heldout_choice2": 0.5}


# lm-eval


@pytest.mark.parametrize("task", ITEM_TASKS)
def test_random_weights_score_chance(task: str, corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    acc = score(EvaluateRecipe(task=task), tmp_path, checkpoint, corpus)["acc"]
    n = read_manifest(corpus).tasks[task]
    assert acc.n == n == 200
    chance = CHANCE[task]
    value = present(acc.value)
    assert abs(value - chance) <= 3 * math.sqrt(max(chance * (1 - chance), 0.01) / n)
    assert acc.stderr == pytest.approx(math.sqrt(value * (1 - value) / (n - 1)))


@pytest.mark.parametrize("task", [*ITEM_TASKS, "bits_per_byte"])
def test_random_weights_have_collapsed(task: str, corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    outcome = outcome_of(EvaluateRecipe(task=task), tmp_path, checkpoint, corpus)
    levels = outcome.facts["chance"]
    assert {each.score for each in of_scores(outcome.metrics, outcome.facts)} == levels.keys()
    if task != "bits_per_byte":
        assert levels["acc"]["value"] == pytest.approx(CHANCE[task], abs=0.1 if task == "heldout_cloze" else 1e-9)


class Oracle(LM):
    """Knows the held-out items: the likelier continuation is the one that is there."""

    def __init__(self, corpus: Path) -> None:
        super().__init__()
        self.right = set()
        for task in ITEM_TASKS:
            for line in (corpus / "tasks" / f"{task}.jsonl").read_text("utf-8").splitlines():
                item = json.loads(line)
                answer = item["target"] if "target" in item else item["choices"][item["label"]]
                self.right.add((item["context"], answer))

    def loglikelihood(self, requests: Any) -> list[tuple[float, bool]]:
        answers = [request.args in self.right for request in requests]
        return [(-0.01 if right else -20.0, right) for right in answers]

    def loglikelihood_rolling(self, requests: Any) -> Any:
        raise NotImplementedError

    def generate_until(self, requests: Any) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("task", ITEM_TASKS)
def test_an_oracle_scores_everything(task: str, corpus: Path, tmp_path: Path) -> None:
    found = harness.score(Oracle(corpus), EvaluateRecipe(task=task), TASKS_FOLDER, corpus, tmp_path)
    scores = {row.metric: row for row in found.rows}
    assert scores["acc"].value == 1.0
    assert scores["acc"].n == 200
    if task == "heldout_cloze":
        assert scores["perplexity"].value == pytest.approx(math.exp(0.01))


def test_scoring_forks_no_process(
    corpus: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that is forked beside torch's threads may wait for a lock for ever.
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    scores = score(EvaluateRecipe(task="heldout_cloze", limit=20), tmp_path, checkpoint, corpus)
    assert (scores["perplexity"].stderr or 0) > 0


def test_every_number_of_lm_eval_is_a_row_and_samples_are_kept(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    result = score(EvaluateRecipe(task="heldout_cloze", limit=20), tmp_path, checkpoint, corpus)
    assert set(result) == {"acc", "perplexity"}
    assert all(row.stderr is not None and row.n == 20 for row in result.values())
    saved = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["metric"] for row in saved["metrics"]} == {"acc", "perplexity"}
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 20
    assert np.mean([sample["acc"] for sample in samples]) == pytest.approx(result["acc"].value)
    likelihood = -np.mean([sample["perplexity"] for sample in samples])
    assert math.exp(likelihood) == pytest.approx(result["perplexity"].value)


def kept(folder: Path) -> dict[str, NDArray[np.void]]:
    """The outcomes that were left, by metric."""
    files = (folder / "out" / outcomes.FOLDER).rglob(f"*{outcomes.SUFFIX}")
    return {path.stem: np.frombuffer(path.read_bytes(), outcomes.ROW) for path in files}


def test_outcomes_of_samples_give_the_score_and_what_is_no_mean_has_none(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    result = score(EvaluateRecipe(task="heldout_cloze", limit=20), tmp_path, checkpoint, corpus)
    found = kept(tmp_path)
    assert set(found) == {"acc"}
    assert found["acc"]["part"].mean() == pytest.approx(result["acc"].value)
    assert set(found["acc"]["weight"]) == {1.0}
    assert len(set(found["acc"]["unit"])) == 20


def test_outcomes_of_windows_give_bits_per_byte_and_say_which_window_they_are_about(
    corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    whole = score(EvaluateRecipe(task="bits_per_byte", limit=9), tmp_path, checkpoint, corpus)
    found = kept(tmp_path)["bits_per_byte"]
    assert found["part"].sum() / found["weight"].sum() == pytest.approx(whole["bits_per_byte"].value)
    score(EvaluateRecipe(task="bits_per_byte", limit=3), tmp_path, checkpoint, corpus)
    assert set(kept(tmp_path)["bits_per_byte"]["unit"]) < set(found["unit"])


def test_a_groups_members_have_their_own_outcomes(tmp_path: Path) -> None:
    def sample(task: str, at: int, score: float) -> outcomes.Sample:
        return outcomes.Sample(task, at, f"{at}", "yes", "none", ["yes"], {"acc": score})

    samples = [sample("b", 7, 1.0), sample("a", 8, 0.0), sample("a", 0, 1.0)]
    rows = [
        MetricRow("acc", 2 / 3),
        MetricRow("acc", 0.5, subtask="a"),
        MetricRow("acc", 0.9, subtask="b"),
    ]
    found = outcomes.of_samples(samples, "group", rows)
    assert set(found) == {"acc", "a/acc"}  # what b reports is no mean of its samples
    assert list(found["a/acc"].parts) == [1.0, 0.0]
    assert list(found["acc"].units) == [outcomes.digest(at) for at in (b"7", b"0", b"8")]  # member by member
    outcomes.save(found, tmp_path)
    assert (tmp_path / "scores" / "a" / "acc.samples").stat().st_size == 2 * 24


def test_a_likelihood_is_the_models_own(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    score(EvaluateRecipe(task="heldout_choice2", limit=3, precision="fp32"), tmp_path, checkpoint, corpus)
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    items = (corpus / "tasks" / "heldout_choice2.jsonl").read_text("utf-8").splitlines()
    model = MLKVForCausalLM.from_pretrained(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    for sample, line in zip(samples, items, strict=False):
        item = json.loads(line)
        before = len(tokenizer.encode(item["context"]))
        for choice, (likelihood, _) in zip(item["choices"], sample["filtered_resps"], strict=True):
            ids = torch.tensor([tokenizer.encode(item["context"] + choice)])
            nats = functional.cross_entropy(model(ids).logits[0, before - 1 : -1], ids[0, before:], reduction="sum")
            assert likelihood == pytest.approx(-nats.item(), rel=1e-4)


def test_a_checkpoint_replaced_in_its_place_is_read_anew(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    recipe = EvaluateRecipe(task="bits_per_byte", limit=4)
    before = score(recipe, tmp_path, other, corpus)["bits_per_byte"].value
    MLKVForCausalLM.from_shape(SHAPE, make("even", 2, 2, 1, 1), seed=4).save_pretrained(other)
    assert score(recipe, tmp_path, other, corpus)["bits_per_byte"].value != before


def test_progress_is_reported_and_a_stop_is_heard(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    rows: list[Row] = []
    recipe = EvaluateRecipe(task="heldout_choice4", limit=10, batch_size=8)
    score(recipe, tmp_path, checkpoint, corpus, ctx=context(tmp_path, rows))
    assert rows[-1] == {"step": 40, "steps": 40}
    with pytest.raises(Interrupted, match="of 40"):
        score(recipe, tmp_path, checkpoint, corpus, ctx=context(tmp_path, should_stop=lambda: True))


@pytest.mark.parametrize("task", [*ITEM_TASKS, "bits_per_byte"])
def test_tasks_on_held_out_text_need_a_corpus(task: str, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=f"task = {task}: .* corpus"):
        score(EvaluateRecipe(task=task), tmp_path, checkpoint, None)


def test_a_corpus_without_items_is_said(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(corpus, tmp_path / "bare")
    (bare / "tasks" / "heldout_choice4.jsonl").write_text("")
    with pytest.raises(StepFailed, match="made without its items"):
        score(EvaluateRecipe(task="heldout_choice4"), tmp_path, checkpoint, bare)


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our task definitions and one of a user's, over a file of theirs."""
    folder = shutil.copytree(TASKS_FOLDER, tmp_path_factory.mktemp("conf") / "tasks")
    lines = [json.dumps({"question": f"{i} and {i}", "answer": " same"}) for i in range(5)]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    definition = {
        "task": "pairs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "pairs.jsonl")}, "cache_dir": str(folder / "cache")},
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "pairs.yaml").write_text(json.dumps(definition))
    return folder


@pytest.mark.slow
def test_a_users_own_task_is_found_and_takes_few_shots(own_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = EvaluateRecipe(task="pairs", few_shot=2)
    acc = score(recipe, tmp_path, checkpoint, None, tasks=own_folder)["acc"]
    assert (acc.value, acc.n) == (0.0, 5)


@pytest.mark.long
def test_lm_evals_own_command_answers_each_question_alike(own_folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint is what an export to transformers has: it is opened there by its own code. In one precision: by
    itself ours is that of the processor, bf16 on some."""
    text = " ".join(Path(__file__).read_text("utf-8").split())
    lines = [json.dumps({"question": text[i : i + 40], "answer": text[i + 40 : i + 50]}) for i in range(0, 2000, 100)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    definition = json.loads((own_folder / "pairs.yaml").read_text())
    definition["dataset_kwargs"]["data_files"] = {"test": str(tmp_path / "pairs.jsonl")}
    definition["metric_list"].append({"metric": "perplexity"})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pairs.yaml").write_text(json.dumps(definition))
    recipe = EvaluateRecipe(task="pairs", precision="fp32")
    outcome_of(recipe, tmp_path, checkpoint, None, tasks=tmp_path / "tasks")
    words = ["--model_args", f"pretrained={checkpoint},dtype=float32,trust_remote_code=True", "--device", "cpu"]
    words += ["--include_path", str(tmp_path / "tasks"), "--tasks", "pairs", "--batch_size", "4"]
    command = [sys.executable, "-m", "lm_eval", *words, "--log_samples", "--output_path", str(tmp_path / "theirs")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    [theirs] = (tmp_path / "theirs").rglob("samples_pairs_*.jsonl")
    ours = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    for sample, other in zip(ours, map(json.loads, theirs.read_text().splitlines()), strict=True):
        assert sample["acc"] == other["acc"]
        assert sample["perplexity"] == pytest.approx(other["perplexity"], abs=1e-4)


@pytest.mark.slow
def test_names_told_from_files_are_those_that_lm_eval_knows(own_folder: Path) -> None:
    known = set(harness._manager(own_folder).all_tasks) - {"pairs", *ITEM_TASKS, *RECALL_TASKS}
    assert known <= set(lm_eval_tasks())
    assert len(set(lm_eval_tasks()) - known) < 20


@pytest.mark.slow
def test_counts_told_from_files_are_those_that_lm_eval_reads(own_folder: Path) -> None:
    index = harness._manager(own_folder).task_index
    tasks = {name: entry.cfg.get("num_fewshot") for name, entry in index.items() if entry.kind.name == "TASK"}
    counted = [name for name, count in tasks.items() if count is not None and name not in (*ITEM_TASKS, *RECALL_TASKS)]
    assert len(counted) > 1000
    for name in counted[::7] + list(tasks)[::500]:
        assert own_counts(name, own_folder) == {name: tasks[name]}


@pytest.mark.parametrize(
    ("few_shot", "own", "given"),
    [(None, None, 0), (None, 5, 5), (3, 5, 3), (0, 5, 0), ({"pairs": 2}, 5, 2), ({"other": 2}, 5, 5), ({}, None, 0)],
)
def test_a_task_is_given_what_was_asked_for_or_its_own(
    few_shot: int | dict[str, int] | None, own: int | None, given: int
) -> None:
    assert harness._few_shot(EvaluateRecipe(task="pairs", few_shot=few_shot), "pairs", own) == given


@pytest.mark.parametrize("task", ["arc_easy", "lambada_openai", "piqa", "sciq", "mmlu", "pairs", "bits_per_byte"])
def test_known_tasks_pass_the_check(own_folder: Path, task: str) -> None:
    check_task(task, own_folder)


@pytest.mark.parametrize(
    ("task", "near"), [("heldout_choice3", "heldout_choice4"), ("lambada_opnai", "lambada_openai")]
)
def test_an_unknown_task_is_met_with_near_ones(checkpoint: Path, tmp_path: Path, task: str, near: str) -> None:
    with pytest.raises(StepFailed, match=rf"task = {task}: neither lm-eval nor .* has it; did you mean .*{near}"):
        score(EvaluateRecipe(task=task), tmp_path, checkpoint, None)


@pytest.mark.parametrize("task", ["bits_per_byte", "heldout_choice2"])
def test_a_model_that_computes_nothing_finite_has_no_score(
    task: str, corpus: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = MLKVForCausalLM.from_pretrained(checkpoint)
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    model.model.blocks[0].mlp.up.weight.data[0] = 3e38  # finite, but not what is computed with it
    model.save_pretrained(broken)
    with pytest.raises(StepFailed, match=r"has no finite value|log-likelihoods are not a number"):
        score(EvaluateRecipe(task=task, limit=8), tmp_path, broken, corpus)
    model.model.blocks[0].mlp.up.weight.data[0] = math.inf
    model.save_pretrained(broken)
    with pytest.raises(StepFailed, match=r"weight model.blocks.0.mlp.up.weight is not finite"):
        score(EvaluateRecipe(task=task, limit=8), tmp_path, broken, corpus)
    assert not (tmp_path / "out" / "results.json").exists()


# Bits per byte


def test_random_weights_know_nothing(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    metrics = score(EvaluateRecipe(task="bits_per_byte"), tmp_path, checkpoint, corpus)
    heldout = read_manifest(corpus).heldout
    nats = present(metrics["nats_per_token"].value)
    assert nats == pytest.approx(math.log(SHAPE.vocab_size), abs=0.1)
    text_tokens = heldout.tokens - heldout.documents
    assert metrics["bits_per_byte"].value == pytest.approx(nats / math.log(2) * text_tokens / heldout.bytes)
    assert metrics["bits_per_byte"].n == metrics["nats_per_token"].n == len(bits.cut_windows(corpus, None).ids)


def test_windows_predict_every_held_out_token_once(corpus: Path) -> None:
    found = bits.cut_windows(corpus, None)
    manifest = read_manifest(corpus)
    held_out = open_blocks(corpus, "heldout")
    stream = held_out.rows.reshape(-1)[: held_out.tokens]
    text = stream[1:][stream[1:] != manifest.end_of_text]
    assert np.array_equal(found.ids[:, 1:][found.counted], text)
    assert found.bytes.sum() == manifest.heldout.bytes
    assert found.ids.shape[1] == manifest.sequence_length
    assert np.array_equal(found.ids[1:, 0], found.ids[:-1, -1]), "a window begins with its predecessor's last token"


def test_a_limit_spreads_its_windows_over_the_text(corpus: Path) -> None:
    every, some = bits.cut_windows(corpus, None), bits.cut_windows(corpus, 5)
    assert len(some.ids) == 5
    assert np.array_equal(some.ids[0], every.ids[0])
    assert np.array_equal(some.ids[-1], every.ids[-1])
    assert len(bits.cut_windows(corpus, 10_000).ids) == len(every.ids)


def test_nats_are_those_of_one_window_after_another(corpus: Path, checkpoint: Path) -> None:
    model = MLKVForCausalLM.from_pretrained(checkpoint)
    found = bits.cut_windows(corpus, 7)
    reading = held_out_pass.HeldOutPass(model, found.ids)
    nats_N = bits.nats(reading, found, BatchSize.of(3, model), lambda done, of: None)
    for ids_T, counted, nats in zip(found.ids, found.counted, nats_N, strict=True):
        ids_1T = torch.from_numpy(ids_T)[None]
        log_p = functional.log_softmax(model(ids_1T).logits[0, :-1], -1)
        expected = -log_p.gather(-1, ids_1T[0, 1:, None])[torch.from_numpy(counted)].sum()
        assert nats == pytest.approx(expected.item(), rel=1e-5)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(1, 100)), min_size=2, max_size=50))
def test_the_ratios_error_is_that_of_the_mean_where_wholes_are_equal(pairs: list[tuple[float, float]]) -> None:
    parts = np.array([part for part, _ in pairs])
    value, error = bits.ratio(parts, np.full(len(parts), 4.0))
    assert value == pytest.approx(parts.mean() / 4)
    assert error == pytest.approx(parts.std(ddof=1) / math.sqrt(len(parts)) / 4, abs=1e-9)


def test_a_single_window_has_no_error(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    metrics = score(EvaluateRecipe(task="bits_per_byte", limit=1), tmp_path, checkpoint, corpus)
    assert metrics["bits_per_byte"].stderr is None


def test_bf16_scores_nearly_the_same(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    scores = {}
    for precision in ("fp32", "bf16"):
        recipe = EvaluateRecipe(task="bits_per_byte", limit=10, precision=precision)
        outcome = outcome_of(recipe, tmp_path, checkpoint, corpus)
        assert outcome.facts["precision"] == precision
        [scores[precision]] = [row.value for row in outcome.metrics if row.metric == "nats_per_token"]
    assert scores["fp32"] != scores["bf16"]
    assert scores["fp32"] == pytest.approx(scores["bf16"], abs=0.01)


def test_a_token_of_a_task_that_the_model_has_no_embedding_for_is_named(tmp_path: Path, corpus: Path) -> None:
    model = MLKVForCausalLM.from_shape(replace(SHAPE, vocab_size=300), mha(2, 2), seed=3)
    model.save_pretrained(tmp_path / "small")
    shutil.copytree(corpus / "tokenizer", tmp_path / "small", dirs_exist_ok=True)
    with pytest.raises(StepFailed, match=r"^token = \d+ \('.*'\) in a text of the task: the model takes 300 at most"):
        outcome_of(EvaluateRecipe("heldout_cloze", limit=20), tmp_path, tmp_path / "small", corpus)


# With a quantised cache


@torch.inference_mode()
def test_bits_per_byte_are_those_of_decoding_with_the_cache(corpus: Path, checkpoint: Path, tmp_path: Path) -> None:
    recipe = EvaluateRecipe(task="bits_per_byte", limit=3)
    found: dict[str, list[float]] = {}
    for cache in ("model", "int4", "model"):
        outcome = outcome_of(replace(recipe, cache=cache), tmp_path, checkpoint, corpus)
        found.setdefault(cache, []).append(present(outcome.metrics[0].value))
        assert outcome.facts.get("cache", "model") == cache
    assert found["model"][0] == found["model"][1], "the next task on the checkpoint has its own cache"
    assert found["model"][0] != found["int4"][0]
    model, windows, nats = MLKVForCausalLM.from_pretrained(checkpoint).eval(), bits.cut_windows(corpus, 3), 0.0
    for ids_T, counted_T in zip(torch.from_numpy(windows.ids), windows.counted, strict=True):
        cache = QuantisedCache(model.config, "int4")
        for i, counted in enumerate(counted_T):
            logits = model(ids_T[None, i : i + 1], past_key_values=cache).logits[0, -1]
            nats -= float(counted) * float(logits.log_softmax(-1)[ids_T[i + 1]])
    assert found["int4"][0] == pytest.approx(nats / math.log(2) / windows.bytes.sum(), rel=1e-6)


@torch.inference_mode()
def test_lm_evals_answers_are_those_of_decoding_with_the_cache(corpus: Path, checkpoint: Path) -> None:
    """Likelihoods, with a context of their own and with one that several share, and generated answers."""
    model = MLKVForCausalLM.from_pretrained(checkpoint).eval()
    model.model.rounding = rounding("int4")
    lm = lm_of(model, checkpoint)
    requests = [("def f(x):", " return x"), ("def f(x):", " pass"), ("import os", "\nimport sys")]
    answers = [lm.tok_encode(text) for pair in requests for text in pair]
    pairs = [(pair, *answers[2 * i : 2 * i + 2]) for i, pair in enumerate(requests)]
    likelihoods = [likelihood for likelihood, _ in lm._loglikelihood_tokens(pairs)]
    generated = lm.generate_until([Instance("generate_until", {}, ("import", {"max_gen_toks": 6, "until": []}), 0)])
    model.model.rounding = None
    for (_, context_tokens, tokens), likelihood in zip(pairs, likelihoods, strict=True):
        cache, total, ids = QuantisedCache(model.config, "int4"), 0.0, context_tokens + tokens
        for i, token in enumerate(ids[:-1]):
            log_p = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1].log_softmax(-1)
            total += float(log_p[ids[i + 1]]) if i + 1 >= len(context_tokens) else 0.0
        assert likelihood == pytest.approx(total, rel=1e-4)
    prompt, cache = torch.tensor([lm.tok_encode("import")]), QuantisedCache(model.config, "int4")
    decoded = model.generate(prompt, past_key_values=cache, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert generated == [lm.tok_decode(decoded[0, prompt.shape[1] :].tolist())]


def test_an_unknown_cache_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match="cache = int5: must be one of model, int8, int4"):
        EvaluateRecipe(task="bits_per_byte", cache="int5")
