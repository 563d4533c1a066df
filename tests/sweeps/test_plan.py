"""What is shared, what changes with what, and ids that stay: an experiment is a value."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import pytest

from sweeps.planning import resolve
from sweeps.planning.compose import Composer
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.steps.step import Step, canonical
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from tests.support.bases import write_zeros

Planner = Callable[[Sequence[str]], Plan]
GOLDEN = Path(__file__).with_name("golden_ids.json")
PYTHIA = {
    "model_type": "gpt_neox",
    "vocab_size": 50304,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "hidden_act": "gelu",
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
}


def added(planner: Planner, before: list[str], after: list[str]) -> Counter[str]:
    """Kinds of the steps that the second line has and the first has not."""
    old, new = planner(before).steps, planner(after).steps
    return Counter(step.kind for id, step in new.items() if id not in old)


def test_a_layout_more_adds_its_own_steps_alone(planner: Planner) -> None:
    some = ["experiment=quickstart", "layout.kv_layers=6,2", "layout.kv_heads=1,6"]
    more = ["experiment=quickstart", "layout.kv_layers=6,2,1", "layout.kv_heads=1,6,1"]
    assert added(planner, some, more) == {"convert": 1, "uptrain": 1, "evaluate": 6, "measure": 1}


def test_a_task_more_runs_that_task_on_each_checkpoint(planner: Planner) -> None:
    two = "evaluate.accuracy=[]"
    before = ["experiment=quickstart", two, "evaluate.tasks=[bits_per_byte]"]
    assert added(planner, before, [*before[:2], "evaluate.tasks=[bits_per_byte,heldout_cloze]"]) == {"evaluate": 9}


def test_a_learning_rate_reruns_uptraining_and_what_follows(planner: Planner) -> None:
    line = ["experiment=quickstart"]
    assert added(planner, line, [*line, "uptrain.lr=2e-3"]) == {"uptrain": 8, "evaluate": 40}
    assert added(planner, line, [*line, "base.lr=2e-3"]) == {
        "base": 1,
        "calibrate": 1,
        "convert": 8,
        "uptrain": 8,
        "evaluate": 52,
    }


@pytest.mark.parametrize(
    "how",
    [
        "cluster.slots=7",
        "uptrain.micro_batch=4",
        "uptrain.save_every=7",
        "evaluate.batch_size=3",
        "name=other",
        "reports=x",
    ],
)
def test_where_and_how_fast_is_not_identity(planner: Planner, how: str) -> None:
    assert added(planner, ["experiment=quickstart"], ["experiment=quickstart", how]) == {}


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("corpus.seed=1", "corpus"),
        ("base.threads=1", "base"),
        ("convert.merge=first", "convert"),
        ("convert.widening=copy", "convert"),
        ("uptrain.seed=1", "uptrain"),
        ("evaluate.limit=9", "evaluate"),
        ("measure.contexts=[64]", "measure"),
    ],
)
def test_what_comes_out_is_identity(planner: Planner, what: str, kind: str) -> None:
    assert added(planner, ["layout=mqa"], ["layout=mqa", what])[kind]


def test_seeds_count_only_where_they_are_used(planner: Planner) -> None:
    assert added(planner, ["layout=mqa"], ["layout=mqa", "convert.seed=1"]) == {}
    random = ["layout=mqa", "convert.merge=random"]
    assert added(planner, random, [*random, "convert.seed=1"])["convert"] == 1
    assert added(planner, ["layout=mqa"], ["layout=mqa", "evaluate.seed=1"]) == {}
    shots = ["layout=mqa", "evaluate.few_shot=1"]
    assert added(planner, shots, [*shots, "evaluate.seed=1"])["evaluate"]


def test_conversion_to_the_bases_own_layout_is_one_step_however_it_merges(planner: Planner) -> None:
    assert added(planner, ["layout=mha"], ["layout=mha", "convert=published"]) == {}


def test_grouping_is_identity_where_heads_can_be_chosen(planner: Planner) -> None:
    similar = "convert.grouping=similar"
    gqa = ["layout.kv_heads=2", "sweep.baselines=[]", "measure=none", "evaluate=none", "evaluate.axis=null"]
    assert added(planner, gqa, [*gqa, "convert.grouping=adjacent"]) == {}
    assert added(planner, gqa, [*gqa, similar]) == {"calibrate": 1, "convert": 1, "uptrain": 1}
    assert added(planner, [*gqa, "convert=svd"], [*gqa, "convert=svd", similar]) == {"convert": 1, "uptrain": 1}
    mqa = ["layout=mqa", *gqa[1:]]
    assert added(planner, mqa, [*mqa, similar]) == {}
    assert added(planner, mqa, [*mqa, "convert.merge=random", similar]) == {"convert": 1, "uptrain": 1}


def test_measure_knows_no_weights(planner: Planner) -> None:
    steps = planner(["layout=mqa", "uptrain.lr=1e-3,1e-4"]).steps.values()
    measures = [step for step in steps if step.kind == "measure"]
    assert [step.parents for step in measures] == [{}, {}]


def test_measuring_alone_makes_no_checkpoint(planner: Planner) -> None:
    bare = ["layout=mqa", "convert=none", "evaluate=none"]
    assert {step.kind for step in planner(bare).steps.values()} == {"measure"}
    assert added(planner, ["layout=mqa"], bare) == {}, "its steps are those of a sweep that makes checkpoints"
    assert added(planner, bare, [*bare, "measure.protocol=filled"]) == {"measure": 2}
    with pytest.raises(UserError, match=r"convert = none: makes no checkpoint that evaluate\.tasks could score"):
        planner(bare[:2])


@pytest.mark.parametrize("widening", ["copy", "split"])
def test_a_decoder_from_scratch_is_as_wide_as_a_converted_one(planner: Planner, widening: str) -> None:
    line = ["layout=mqa", f"convert.widening={widening}", "sweep.baselines=[]"]
    [converted], [native] = planner(line).variants, planner([*line, "convert.start=scratch"]).variants
    assert native.shape == converted.shape
    assert native.shape.mlp_width > native.model.shape.mlp_width
    assert native.convert
    assert native.convert.slice["shape"]["mlp_width"] == native.shape.mlp_width
    assert native.measure == converted.measure


def test_norms_of_their_own_are_identity_only_where_they_are_asked_for(planner: Planner) -> None:
    line = ["convert=scratch", "evaluate=none", "measure=none", "sweep.baselines=[]", "layout=cla"]
    assert added(planner, line, [*line, "model.decoder.kv_norm=false"]) == {}
    assert added(planner, line, [*line, "model.decoder.kv_norm=true"]) == {"convert": 1, "uptrain": 1}


def test_steps_come_parents_first(planner: Planner) -> None:
    seen: set[str] = set()
    for id, step in planner(["experiment=quickstart"]).steps.items():
        assert seen.issuperset(step.parents.values())
        seen.add(id)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def pretrained(folder: Path) -> Path:
    byte_tokenizer(folder)
    write_zeros(folder, PYTHIA | SMALL | {"vocab_size": 512})
    return folder


def test_a_pretrained_base_is_its_files(planner: Planner, tmp_path: Path) -> None:
    one, two = pretrained(tmp_path / "one"), pretrained(tmp_path / "two")
    line = ["model=pythia-160m-deduped", "layout=mqa", f"model.path={one}"]
    assert added(planner, line, [*line[:2], f"model.path={two}"]) == {}
    write_zeros(two, PYTHIA | SMALL | {"vocab_size": 512}, b"\1")
    assert added(planner, line, [*line[:2], f"model.path={two}"])["base"] == 1


def test_text_is_its_content_not_its_place(planner: Planner, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for file in ("x.txt", "y.txt"):
            (tmp_path / name / file).write_text(f"one {file} " * 200)
    line = ["corpus=text_files", f"corpus.files=[{tmp_path}/a/*.txt]"]
    assert added(planner, line, [line[0], f"corpus.files=[{tmp_path}/b/*.txt]"]) == {}
    (tmp_path / "b" / "x.txt").write_text("two" * 900)
    assert added(planner, line, [line[0], f"corpus.files=[{tmp_path}/b/*.txt]"])["corpus"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["layout.kv_heads=5"], r"kv_heads = 5 at layer 0: must divide 6 query heads \(1, 2, 3, 6\)"),
        (["layout.kv_layers=7"], r"layout\.kv_layers = 7: pattern even on 6 layers takes 1 to 6"),
        (["layout=explicit", "layout.kv_source_layers=[0,6,2,2,2,2]"], r"kv_source_layers\[1\] = 6: a layer reads"),
        (["layout=cla", "layout.position=top"], r"position = top: only pattern even, pizza, sandwich"),
        (["layout=sandwich", "layout.position=top", "layout.latent=16"], r"latent: layers that read from above"),
        (["layout=sandwich", "layout.position=top", "layout.value_heads=2"], r"value_heads = .*: a layer that reads"),
        (["layout=sandwich", "layout.forward_passes=3"], r"forward_passes = 3: Sandwich-3 has no layer"),
        (["layout=sandwich", "layout.position=top", "elastic=quickstart"], r"Sandwich-top-3 .*: not among those"),
        (["layout=explicit", "layout.kv_source_layers=[0,0]", "layout.kv_heads=1"], r"2 entries: .* has 6 layers"),
        (["layout=mqa", "layout.kv_source_layers=[0,0,2,2,4,4]"], r"kv_source_layers = .*: only pattern explicit"),
        (["layout=groups", "layout.groups=[2,2]"], r"layout\.groups = \[2, 2\]: have 4 layers, not 6"),
        (["layout=groups", "layout.groups=[6,0]"], r"layout\.groups\.1 = 0"),
        (["layout=explicit", "layout.groups=[6]"], r"kv_source_layers and groups: are both set; choose one"),
        (["layout=mqa", "layout.groups=[6]"], r"groups = \[6\]: only pattern explicit reads it \(pattern = even\)"),
        (["layout=drawn", "layout.kv_heads=2"], r"kv_heads = 2: is drawn too; unset it, or draw"),
        (["layout=drawn", "layout.draw=-1"], r"layout\.draw = -1"),
        (["layout=drawn", "model.decoder.heads=1"], r"layout\.draw = 0: there are 0 layouts to draw on 6 layers of 1"),
        (["corpus.sequence_length=512", "model.decoder.context=256"], r"length = 512: model tiny takes at most 256"),
        (["model.decoder.vocab_size=100"], r"vocab_size = 2048: model tiny has only 100"),
        (["corpus=text_files", "corpus.files=[/nowhere/*.txt]"], r"corpus\.files = /nowhere/\*\.txt: matches no file"),
        (["model=pythia-160m-deduped", "model.path=/nowhere"], r"model\.path = /nowhere: no checkpoint there"),
        (["corpus.tokenizer=published"], r"corpus: tokenizer_from is empty"),
        (["corpus.tokenizer=model"], r"corpus\.tokenizer = model: model tiny is trained here"),
        (["evaluate=none", "evaluate.tasks=[arc_eazy]"], r"task = arc_eazy: neither lm-eval .* did you mean arc_easy"),
    ],
)  # fmt: skip
def test_what_can_be_known_to_fail_fails_in_the_plan(planner: Planner, line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planner(line)


def test_a_tokenizer_of_its_own_is_its_files(planner: Planner, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
    line = ["layout=mqa", "corpus.tokenizer=published", "measure=none"]
    one, two = [*line, f"corpus.tokenizer_from={tmp_path}/one"], [*line, f"corpus.tokenizer_from={tmp_path}/two"]
    assert added(planner, one, two) == {}
    assert added(planner, line[:1], one)["corpus"] == 1
    (tmp_path / "two" / "tokenizer.json").write_text('{"model": {}}')
    assert added(planner, one, two)["corpus"] == 1
    (tmp_path / "one" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"corpus\.tokenizer_from = .*one: no tokenizer\.json there"):
        planner([*one, "corpus.seed=1"])


def test_a_text_that_is_not_utf8_is_named(planner: Planner, tmp_path: Path) -> None:
    (tmp_path / "ascii.txt").write_text("naive")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    with pytest.raises(UserError, match=r"corpus\.files = .*latin\.txt: not UTF-8"):
        planner(["corpus=text_files", f"corpus.files=[{tmp_path}/*.txt]"])


def test_an_unreachable_hub_is_one_error(planner: Planner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"pythia-160m-deduped at main: the hub is out of reach .* set model\.path=DIR"):
        planner(["model=pythia-160m-deduped"])
    with pytest.raises(
        UserError, match=r"model acme/words at main: the hub is out of reach .* corpus\.tokenizer_from=DIR"
    ):
        planner(["corpus.tokenizer=published", "corpus.tokenizer_from=acme/words"])


def test_nan_is_no_identity() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        canonical({"lr": float("nan")})


def test_key_order_is_no_identity() -> None:
    assert Step("base", {"a": 1, "b": 2}).id == Step("base", {"b": 2, "a": 1}).id


class FixedFacts(Resolver):
    """Outside facts that never change, so that ids can be written down."""

    def _text(self, recipe: object) -> str:
        return "0" * 64

    def _split(self, recipe: object) -> dict[str, str]:
        return {}

    def corpus_note(self, recipe: object, model: object) -> str:
        return ""

    def check_base(self, config: object) -> None:
        """Weights of no tensor are the same file on every machine."""


def byte_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without a merge, its files the same on every machine."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    vocabulary = {"<|endoftext|>": 0} | {character: i + 1 for i, character in enumerate(sorted(alphabet))}
    end = {"id": 0, "content": "<|endoftext|>", "special": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    content = {
        "version": "1.0",
        "added_tokens": [end | flags],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(content, sort_keys=True), "utf-8")
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, sort_keys=True), "utf-8")


def byte_checkpoint(folder: Path) -> None:
    """What a plan reads of a checkpoint with that tokenizer; its weights are a file without a tensor."""
    byte_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps(PYTHIA | SMALL, sort_keys=True), "utf-8")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")


TEXT = (
    "corpus=text_files corpus.files=[x.txt] corpus.subset=null corpus.split=train corpus.revision=null "
    "corpus.text_column=text corpus.take=null corpus.fraction=null corpus.shuffle_buffer=10000 corpus.vocab_size=2048 "
    "corpus.sequence_length=256 corpus.packing=stream corpus.held_out=0.05 corpus.task_items=600 corpus.seed=42"
)
TRAINED = "corpus.tokenizer=train corpus.tokenizer_from=null corpus.tokenizer_revision=null"
OF_MODEL = "corpus.tokenizer=model corpus.tokenizer_from=null corpus.tokenizer_revision=null"
PUBLISHED = "corpus.tokenizer=published corpus.tokenizer_from={folder}/tokenizer corpus.tokenizer_revision=null"
LOADED = "model=pythia-160m-deduped model.path={folder}/model"
CONVERT = "convert.start=convert convert.merge=mean convert.widening=none convert.seed=42"
UPTRAIN = (
    "uptrain.steps=9 uptrain.tokens=null uptrain.epochs=null uptrain.batch_size=4 uptrain.lr=1e-3 "
    "uptrain.schedule=cosine uptrain.warmup=0.1 uptrain.min_lr_ratio=0.0 uptrain.beta1=0.9 uptrain.beta2=0.95 "
    "uptrain.eps=1e-8 uptrain.weight_decay=0.1 uptrain.grad_clip=1.0 uptrain.precision=auto uptrain.threads=1 "
    "uptrain.seed=42"
)
EVALUATE = (
    "evaluate.tasks=[bits_per_byte,heldout_choice4,arc_easy,gsm8k] evaluate.converted=[] evaluate.accuracy=[] "
    "evaluate.axis=[bits_per_byte,bits_per_byte] evaluate.few_shot=0 evaluate.limit=null evaluate.seed=1234 "
    "evaluate.precision=auto"
)
MEASURE = (
    "measure.batch_sizes=[1,8] measure.contexts=[256] measure.new_tokens=16 measure.protocol=prefill "
    "measure.repeats=3 measure.dtype=fp32 measure.device=cpu measure.threads=1"
)
SHARED = f"layout=mqa {TEXT} {CONVERT} {UPTRAIN} {EVALUATE} {MEASURE}"
WRITTEN_OUT = (
    f"{SHARED} {LOADED} {OF_MODEL}",
    f"{SHARED} {LOADED} {PUBLISHED}",
    f"{SHARED} {LOADED} {TRAINED} convert.start=scratch",
    f"{SHARED} model=tiny {TRAINED}",
    f"{SHARED} model=tiny {PUBLISHED} evaluate.few_shot=3",
    f"{SHARED} {LOADED} {OF_MODEL} evaluate.limit=7",
    f"{SHARED} {LOADED} {OF_MODEL} uptrain.lr=1e-3,1e-4 uptrain.seed=1,2 sweep.zip=[uptrain.lr,uptrain.seed]",
    f"{SHARED} model=tiny {TRAINED} evaluate.few_shot=0,2 evaluate.limit=null,5 "
    "sweep.zip=[evaluate.few_shot,evaluate.limit]",
    f"{SHARED} {LOADED} {OF_MODEL} uptrain.steps=null uptrain.rungs=[3,6] uptrain.schedule=wsd uptrain.decay=0.25 "
    "uptrain.train=lora uptrain.lora_rank=2 uptrain.lora_alpha=4",
)
"""Configurations with nothing left to a default: whatever a default becomes, these stay what they are."""


def golden_lines(folder: Path) -> list[list[str]]:
    byte_checkpoint(folder / "model")
    byte_tokenizer(folder / "tokenizer")
    lines = [
        ["experiment=quickstart", "convert=split", "uptrain=short"],  # as it was until it learned from the base
        ["layout=cla", "convert=scratch"],
        ["layout.budget=6", "convert=published"],
    ]
    written_out = [line.format(folder=folder).split() for line in WRITTEN_OUT]
    return [*lines, *written_out, ["experiment=quickstart"]]


def golden_ids(folder: Path) -> dict[str, str]:
    resolve._file_pins.cache_clear()
    resolver = FixedFacts(Store(folder / "store"))
    with (
        patch("sweeps.planning.variant_steps.package_version", return_value="1.0"),
        patch("sweeps.planning.resolve.package_version", return_value="1.0"),
    ):
        plans = [make_plan(Composer(), resolver, line) for line in golden_lines(folder)]
    named = [(f"{step.kind} {step.label} {i}", id) for i, plan in enumerate(plans) for id, step in plan.steps.items()]
    last, seen = dict(named), Counter[str]()
    for name, id in named:
        seen[name] += 1
        if id != last[name]:  # steps of one label in one plan: the last has the plain name
            last[f"{name} #{seen[name]}"] = id
    return last


@pytest.mark.parametrize("seed", ["0", "7"])
def test_ids_are_those_that_were_written_down(tmp_path: Path, seed: str) -> None:
    """In another process, directory and store, under another hash seed; renewed by running this file."""
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(tmp_path / "golden")]
    printed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    found = golden_ids(Path(sys.argv[1] if len(sys.argv) > 1 else mkdtemp()))
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    print(text) if len(sys.argv) > 1 else GOLDEN.write_text(text)
