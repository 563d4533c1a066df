"""The lines of docs/own_data.md, in a directory that has what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.shape import DecoderShape
from sweeps.planning.compose import Composer
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.store.store import Store
from sweeps.worker.supervisor import DONE, Worker
from tests.support.shell import TEST_CONF
from tests.support.workers_here import workers_here

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text("utf-8")
LINES = re.findall(r"^mlkv sweep (.+)$", PAGE, re.MULTILINE)
WORDS = "the quick brown fox jumps over the lazy dog and seven wizards vex jackals near lakes "
TINY = ["experiment=tiny", "corpus.vocab_size=300", "corpus.sequence_length=64", "corpus.task_items=0"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the page's reader."""
    monkeypatch.chdir(tmp_path)
    task = re.findall(r"```yaml\n(task: .*?)```", PAGE, re.DOTALL)[0]
    rows = [json.dumps({"question": f"{i} + {i}", "answer": str(2 * i)}) for i in range(6)]
    for folder in (Path(), Path("mine/tasks")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sums.yaml").write_text(task)
        (folder / "sums.jsonl").write_text("\n".join(rows))
    Path("texts").mkdir()
    Path("texts/a.jsonl").write_text("".join(json.dumps({"text": f"{WORDS * 9}{i}"}) + "\n" for i in range(40)))
    Path("texts/b.md").write_text(WORDS * 9)
    shape = DecoderShape(512, width=16, layers=2, heads=2, head_dim=8, mlp_width=32, context=64)
    to_family(MLKVForCausalLM.from_shape(shape, mha(2, 2), seed=0), "gpt_neox").save_pretrained("DIR")
    return tmp_path


def plan_of(line: str, *more: str) -> tuple[Plan, list[str]]:
    words = shlex.split(line)
    config_dir = Path(words.pop(words.index("--config-dir") + 1)) if "--config-dir" in words else None
    arguments = [word for word in words if word != "--config-dir"] + list(more)
    return make_plan(Composer(config_dir or TEST_CONF), Resolver(Store(Path("store"))), arguments), arguments


@pytest.mark.long
def test_every_line_plans(here: Path) -> None:
    from mlkv.corpus.tokenizer import train

    train([WORDS], 300).save_pretrained("DIR")
    kinds = {}
    for line in LINES:
        plan, _ = plan_of(line)
        kinds[line] = {step.kind for step in plan.steps.values()}
        if "sums" in line:
            assert {task for variant in plan.variants for task in variant.evaluate} == {"sums"}
    assert len(kinds) == 5
    assert kinds[LINES[-1]] == {"base", "evaluate"}


def test_text_and_a_task_of_ones_own_run(here: Path) -> None:
    text, task = LINES[0], next(line for line in LINES if "sums.yaml" in line)
    only = ["sweep.baselines=[untouched]", "sweep.filter='False'", "measure=none"]
    plan, arguments = plan_of(f"{text} {task}".replace("mlkv sweep", ""), *TINY, *only)
    store = Store.open(Path("store").absolute())
    freeze(plan, store, arguments)
    with workers_here():
        assert Worker(store).run(list(plan.steps)) == DONE
    [scored] = [id for id, step in plan.steps.items() if step.kind == "evaluate"]
    record = store.step(scored).record()
    assert record
    assert record.facts["max_gen_toks"] == 32
    assert [row.metric for row in record.metrics] == ["exact_match"]
