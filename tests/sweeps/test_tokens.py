"""A pretrained base is given the tokens that it knows; others only where they are the same by another name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlkv.corpus.tokenizer import Encoder, difference, load, train
from mlkv.families.save import to_family
from mlkv.hf import MLKVForCausalLM
from mlkv.layout import mha
from mlkv.shape import DecoderShape
from sweeps.planning import hub
from sweeps.planning.plan import Plan
from sweeps.steps.kind import Execution
from sweeps.steps.registry import KINDS
from sweeps.store.errors import UserError
from tests.support.bases import write_zeros
from tests.support.tiny import context

Planner = Callable[[Sequence[str]], Plan]
SHAPE = {
    "model_type": "gpt_neox",
    "vocab_size": 4096,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
}
TEXT = "the quick brown fox jumps over the lazy dog and the dog jumps over the fox again " * 20
LINE = ["model=pythia-160m-deduped", "layout=mqa", "evaluate=none", "measure=none", "corpus=text_files"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments for a text of one's own; document 1 is held out by the hash of its name."""
    folder = tmp_path_factory.mktemp("words")
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"{TEXT} {i}")
    return [f"corpus.files=[{folder}/*.txt]", "corpus.vocab_size=300"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train([TEXT], 290).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path, tokenizer: Path) -> Path:
    """What a plan reads of a pretrained model."""
    folder = shutil.copytree(tokenizer, tmp_path / "base")
    write_zeros(folder, SHAPE)
    return folder


def word(plan: Plan) -> Any:
    [corpus] = {variant.corpus.id: variant.corpus for variant in plan.variants if variant.corpus}.values()
    assert {variant.config.corpus.tokenizer for variant in plan.variants} == {corpus.slice["tokenizer"]}
    return corpus.slice["tokenizer"]


def test_weights_that_are_converted_keep_their_tokenizer(planner: Planner, base: Path, text: list[str]) -> None:
    line = [*LINE, *text, f"model.path={base}"]
    plan = planner(line)
    assert word(plan) == "model"
    assert plan.variants[-1].corpus
    assert plan.variants[-1].corpus.how["tokenizer_source"] == {"path": str(base)}
    assert plan.variants[0].corpus is None, "nothing of the untouched base reads one"
    assert plan.steps.keys() == planner([*line, "corpus.tokenizer=model"]).steps.keys()
    assert plan.steps.keys() == planner([*line, "corpus.vocab_size=60000"]).steps.keys(), "it is not its to choose"


@pytest.mark.parametrize("line", [["model=tiny"], ["convert=scratch"], ["model=tiny", "convert=scratch"]])
def test_weights_that_are_trained_here_learn_any(
    planner: Planner, base: Path, text: list[str], line: list[str]
) -> None:
    line = [*LINE[1:], *text, *([] if "model=tiny" in line else [LINE[0], f"model.path={base}"]), *line]
    plan = planner(line)
    assert word(plan) == "train"
    assert plan.steps.keys() == planner([*line, "corpus.tokenizer=train"]).steps.keys()


def test_where_no_checkpoint_is_made_no_tokenizer_matters(planner: Planner, base: Path) -> None:
    bare = [*LINE[:3], "convert=none", f"model.path={base}", "corpus.tokenizer=train"]
    assert {step.kind for step in planner(bare).steps.values()} == {"measure"}


def test_every_checkpoint_of_a_base_has_its_tokenizer(
    planner: Planner, base: Path, text: list[str], tmp_path: Path
) -> None:
    """All of a plan's steps, run one after another in this process."""
    shape = DecoderShape(512, width=16, layers=2, heads=2, head_dim=8, mlp_width=32, context=64)
    to_family(MLKVForCausalLM.from_shape(shape, mha(2, 2), seed=0), "gpt_neox").save_pretrained(base)
    small = ["corpus.sequence_length=32", "corpus.task_items=0", "corpus.held_out=0.3", "uptrain.steps=1"]
    tasks = ["evaluate.tasks=[bits_per_byte]", "evaluate.limit=2"]
    plan = planner([*LINE, *text, f"model.path={base}", *small, *tasks])
    for id, step in plan.steps.items():
        inputs = {role: tmp_path / parent for role, parent in step.parents.items()}
        (tmp_path / id).mkdir()
        KINDS[step.kind].run(Execution(step, inputs, tmp_path / id, context(tmp_path / f"work-{id}")))
    own, corpus = Encoder(load(base)), plan.variants[0].corpus
    assert corpus
    checkpoints = [id for id, step in plan.steps.items() if step.kind in ("base", "convert", "uptrain")]
    assert len(checkpoints) == 5
    for folder in (*(tmp_path / id for id in checkpoints), tmp_path / corpus.id / "tokenizer"):
        assert difference(own, Encoder(load(folder))) is None, folder.name


def published(folder: Path) -> list[str]:
    return ["corpus.tokenizer=published", f"corpus.tokenizer_from={folder}"]


def rewritten(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The tokenizer in `folder` after a change, in another spelling of its file."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content, indent=1, sort_keys=True), "utf-8")
    return folder


def without_last_merge(content: dict[str, Any]) -> None:
    first, second = content["model"]["merges"].pop()
    content["model"]["vocab"][f"{first}{second}Ġ"] = content["model"]["vocab"].pop(f"{first}{second}")


def test_equal_tokenizers_pass_whatever_their_name(
    planner: Planner, base: Path, text: list[str], tokenizer: Path, tmp_path: Path
) -> None:
    line = [*LINE, *text, f"model.path={base}"]
    copy = shutil.copytree(tokenizer, tmp_path / "of another name")
    assert word(planner([*line, "corpus.tokenizer=published", f"corpus.tokenizer_from='{copy}'"])) == "published"
    spelled = rewritten(shutil.copytree(tokenizer, tmp_path / "spelled"), lambda content: None)
    assert spelled.joinpath("tokenizer.json").read_bytes() != tokenizer.joinpath("tokenizer.json").read_bytes()
    assert word(planner([*line, *published(spelled)])) == "published"


def test_another_tokenizer_is_an_error_that_names_both(
    planner: Planner, base: Path, text: list[str], tokenizer: Path, tmp_path: Path
) -> None:
    line = [*LINE, *text, f"model.path={base}"]
    other = rewritten(shutil.copytree(tokenizer, tmp_path / "other"), without_last_merge)
    named = rf"corpus\.tokenizer = published \({other}\): not the tokenizer of model pythia-160m-deduped \({base}\)"
    with pytest.raises(UserError, match=rf"{named}.*gets other ids; leave corpus\.tokenizer unset"):
        planner([*line, *published(other)])
    with pytest.raises(UserError, match=r"corpus\.tokenizer = train: not the tokenizer of model pythia-160m-deduped"):
        planner([*line, "corpus.tokenizer=train", "corpus.vocab_size=280"])
    with pytest.raises(UserError, match=r"corpus\.tokenizer = train: not .*gets other ids"):
        planner([*line, "corpus.tokenizer=train"])
    assert word(planner([*line, *published(other), "convert=scratch"])) == "published"


def test_a_tokenizer_that_the_text_makes_again_is_the_models(planner: Planner, base: Path, text: list[str]) -> None:
    """A base that was trained here on this text, exported, and loaded."""
    from mlkv.corpus.documents import documents
    from mlkv.corpus.step import train_tokenizer

    line = [*LINE, *text, f"model.path={base}"]
    [variant, *_] = planner([*LINE[1:], *text, "model=tiny"]).variants
    train_tokenizer(variant.config.corpus, documents(variant.config.corpus)).save_pretrained(base)
    assert word(planner([*line, "corpus.tokenizer=train"])) == "train"


def test_a_model_without_a_tokenizer_needs_to_be_given_its_own(
    planner: Planner, base: Path, text: list[str], tokenizer: Path
) -> None:
    line = [*LINE, *text, f"model.path={base}"]
    (base / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"model\.path = .*base: no tokenizer there; add the one"):
        planner(line)
    with pytest.raises(UserError, match=r"corpus\.tokenizer = train: not the tokenizer of model .* that has none"):
        planner([*line, "corpus.tokenizer=train"])
    assert word(planner([*line, *published(tokenizer)])) == "published"
    content = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))["model"]
    (base / "vocab.json").write_text(json.dumps(content["vocab"]))
    (base / "merges.txt").write_text("".join(f"{first} {second}\n" for first, second in content["merges"]))
    (base / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    assert word(planner(line)) == "model", "GPT-2's older files are one too"


@pytest.mark.parametrize("content", ["", '{"a', "{}", "[]", "3"])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_damaged_files_of_a_base_are_named(
    planner: Planner, base: Path, text: list[str], tokenizer: Path, name: str, content: str
) -> None:
    (base / name).write_text(content)
    with pytest.raises(UserError, match=r"^(corpus\.tokenizer = .*base: |model(\.path =)? .*base: )") as error:
        planner([*LINE, *text, f"model.path={base}", *published(tokenizer)])
    assert "\n" not in str(error.value)


def test_a_tokenizer_is_not_named_in_vain(planner: Planner, text: list[str], tokenizer: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer_from = .*: set tokenizer = published to use it"):
        planner([*LINE[1:], *text, f"corpus.tokenizer_from={tokenizer}"])


def test_one_repository_is_itself_and_an_unreachable_one_is_said(
    planner: Planner, monkeypatch: pytest.MonkeyPatch, text: list[str]
) -> None:
    monkeypatch.setattr(hub, "_commit", lambda *_: "0" * 40)
    monkeypatch.setattr(hub, "model_config", lambda *_: SHAPE)

    def no_hub(*_: object) -> Path:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "local_copy", no_hub)
    same = ["corpus.tokenizer=published", "corpus.tokenizer_from=EleutherAI/pythia-160m-deduped"]
    assert word(planner([*LINE, *text, *same])) == "published"
    with pytest.raises(UserError, match=r"tokenizer of acme/words: the hub is out of reach .* leave corpus\.tokenizer"):
        planner([*LINE, *text, *same[:1], "corpus.tokenizer_from=acme/words"])


@pytest.mark.parametrize(
    "normalizer",
    [
        *({"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")),
        *({"type": "Replace", "pattern": {"String": sign}, "content": " "} for sign in "\u00a0\u3000\u200b\ufeff"),
    ],
)
def test_a_difference_is_found_in_what_is_done_to_text_first(
    tokenizer: Path, tmp_path: Path, normalizer: dict[str, Any]
) -> None:
    """Pythia's tokenizer composes characters, which shows in none that are composed already."""
    other = rewritten(
        shutil.copytree(tokenizer, tmp_path / "other"), lambda content: content.update(normalizer=normalizer)
    )
    own, others = Encoder(load(tokenizer)), Encoder(load(other))
    text = difference(own, others)
    assert text
    assert own.ids([text])[0].tolist() != others.ids([text])[0].tolist()


def test_a_difference_is_found_in_the_last_merge_and_in_the_end_of_a_text(tokenizer: Path, tmp_path: Path) -> None:
    own = Encoder(load(tokenizer))
    assert difference(own, Encoder(load(tokenizer))) is None
    other = Encoder(load(rewritten(shutil.copytree(tokenizer, tmp_path / "other"), without_last_merge)))
    text = difference(own, other)
    assert text
    assert own.ids([text])[0].tolist() != other.ids([text])[0].tolist()
    ends = Encoder(load(tokenizer))
    ends.end = 1
    assert difference(own, ends) == "the end of a text"
