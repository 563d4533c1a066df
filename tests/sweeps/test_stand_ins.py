"""README's and docs' lines about pretrained models, run on stand-ins for the hub: their results make sense."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps.planning.compose import Composer
from sweeps.planning.grammar import points
from sweeps.planning.parse import parse
from tests.support.read_back import present
from tests.support.shell import Shell
from tests.support.stand_in import on_hub, pythia
from tests.test_recipes_and_docs import commands

pytestmark = pytest.mark.long(minutes=11)

NOISE = 0.01
"""Bits per byte that two uptrainings of one layout may differ by at this size."""
SMALLER = [
    "cluster=local",
    "cluster.slots=2",
    "tracking=off",
    "corpus.sequence_length=128",
    "corpus.held_out=0.2",
    "corpus.task_items=0",
    "uptrain.tokens=null",
    "uptrain.epochs=null",
    "uptrain.steps=40",
    "uptrain.batch_size=8",
    "uptrain.micro_batch=null",
    "evaluate=none",
    "evaluate.tasks=[bits_per_byte]",
    "evaluate.axis=[bits_per_byte,bits_per_byte]",
    "measure=none",
]
"""What a machine without the internet and without GPUs changes about a line: how much, not what."""


STAND_IN = "EleutherAI/pythia-160m-deduped"


def pretrained_lines() -> list[str]:
    """The documented sweeps of the model that there is a stand-in for, each once, whatever cluster they are shown
    on."""
    found = set()
    for line in commands():
        words = [word for word in shlex.split(line)[2:] if not word.startswith("cluster")]
        if line.startswith("mlkv sweep ") and all("=" in word for word in words):
            first, _ = next(points(Composer(), words))
            if parse(Composer()(first)).model.hub == STAND_IN:
                found.add(" ".join(words))
    return sorted(found)


@dataclass(frozen=True)
class StandIns:
    """A hub's cache with a Pythia, and the text that it was trained on as files and as a data set."""

    hub: Path
    text: Path
    dataset: Path


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> StandIns:
    folder = tmp_path_factory.mktemp("stand_ins")
    on_hub(folder / "hub", STAND_IN, pythia(folder / "made", steps=400))
    dataset = folder / "dataset"
    dataset.mkdir()
    documents = [path.read_text("utf-8") for path in sorted((folder / "made" / "text").rglob("*.py"))]
    rows = [json.dumps({"text": text}) for text in documents if text.strip()]
    (dataset / "train.jsonl").write_text("\n".join(rows), "utf-8")
    return StandIns(folder / "hub", folder / "made" / "text", dataset)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("documented"))


@pytest.mark.parametrize("line", pretrained_lines())
def test_results_of_a_pretrained_base_make_sense(
    line: str, stand_ins: StandIns, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(stand_ins.hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = shlex.split(line)
    own_text = [f"corpus.dataset={stand_ins.dataset}"]
    if not any(word.startswith("experiment=") for word in words):
        own_text = ["corpus=text_files", f"corpus.files=[{stand_ins.text}/**/*.py]"]
    name = "documented-" + words[0].partition("=")[2]
    shell("sweep", *words, *own_text, *SMALLER, f"name={name}", timeout=3000)
    assert "tokenizer: that of model pythia-160m-deduped" in shell("plan", *words, *own_text, *SMALLER, f"name={name}")
    scores = Scores(shell, name)
    assert scores.untouched < min(scores.of_bytes.values()) + NOISE, "a converted base is none better"
    assert scores.of_bytes[min(scores.of_bytes)] > scores.untouched + NOISE, "the smallest cache costs something"
    for fewer, many in ((a, b) for a in scores.of_bytes for b in scores.of_bytes if 2 * a <= b):
        assert scores.of_bytes[fewer] > scores.of_bytes[many] - NOISE, f"{fewer} against {many} bytes per token"


class Scores:
    """Bits per byte: of the untouched base, and of the best variant with so many bytes of cache per token."""

    def __init__(self, shell: Shell, name: str) -> None:
        self.untouched, self.of_bytes = 0.0, dict[int, float]()
        for variant in shell.store.sweep(name).variants:
            [step] = variant.steps.evaluate.values()
            record = shell.store.step(step).record()
            assert record, variant.variant
            [value] = [present(row.value) for row in record.metrics if row.metric == "bits_per_byte"]
            print(f"{variant.variant}: {variant.kv_bytes_per_token} bytes per token, {value:.4f}")
            if variant.baseline == "untouched":
                self.untouched = value
            else:
                size = variant.kv_bytes_per_token
                self.of_bytes[size] = min(value, self.of_bytes.get(size, value))
