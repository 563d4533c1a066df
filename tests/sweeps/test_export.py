"""`mlkv export`: from a finished step of a real store to a directory that others load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml

from mlkv.corpus.tokenizer import train
from mlkv.hf import load_checked
from sweeps.cli.completion import complete_word
from sweeps.planning.freeze import freeze
from sweeps.planning.plan import Plan
from sweeps.store.store import Store
from sweeps.worker.supervisor import DONE, Worker
from tests.support.bases import write_base
from tests.support.hub import COMMIT, TOKEN, uploads
from tests.support.processes import PATIENCE
from tests.support.shell import ROOT, exit_status
from tests.support.workers_here import workers_here

LINE = [
    *("name=made", "model=pythia-160m-deduped", "corpus=text_files", "corpus.sequence_length=64"),
    *("corpus.held_out=0.2", "corpus.task_items=0", "evaluate.tasks=[bits_per_byte]", "evaluate.accuracy=[]"),
    *("evaluate.converted=[]", "measure=none", "uptrain=none", "sweep.baselines=[untouched]"),
    *("layout=mlkv", "layout.kv_layers=2,6", "layout.kv_heads=1,2", "sweep.filter='budget != 6'"),
]


@pytest.fixture(scope="module")
def store(
    tmp_path_factory: pytest.TempPathFactory, text_files: Path, planner: Callable[[Sequence[str]], Plan]
) -> Store:
    """A Llama with four KV heads in each of its six layers, scored as it is and with fewer heads."""
    folder = tmp_path_factory.mktemp("exported")
    base = write_base(folder / "base")
    train([path.read_text() for path in text_files.iterdir()], 300).save_pretrained(base)
    store = Store.open(folder / "store")
    line = [*LINE, f"model.path={base}", f"corpus.files=[{text_files}/*.txt]"]
    plan = planner(line)
    with workers_here():
        freeze(plan, store, line)
        assert Worker(store).run(list(plan.steps)) == DONE
    return store


def export(store: Store, *words: object) -> int:
    return exit_status("export", *map(str, words), "--store", str(store.root))


def steps(store: Store, label: str) -> list[str]:
    return next(row for row in store.sweep("made").variants if row.variant == label).steps.ids


def test_an_export_is_the_checkpoint_with_a_card(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "new" / "shared"
    assert export(store, "made", "MLKV-2", out) == 0
    [converted] = [id for id in steps(store, "MLKV-2") if id.startswith("convert")]
    ours, theirs = load_checked(store.step(converted).out), load_checked(out)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert [path.name for path in out.parent.iterdir()] == ["shared"], "nothing else is left there"
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert "KV heads  1 ─ ─ 1 ─ ─" in card
    assert "| float32 | 64 | 64 | 64 | 64 |" in card, "each of several GPUs holds the one head of an owner"
    assert (
        "A number has 4 bytes here, as in the scores. A cache of bf16 or fp16 takes 1/2, one of fp8 takes 1/4." in card
    )
    assert all(id in card for id in steps(store, "MLKV-2") if id.startswith(("base", "convert")))
    table = [line for line in card.splitlines() if line.startswith(("| MLKV-2 ", "| untouched ", "| MHA-4 "))]
    assert len(table) == 2
    assert "| 64 |" in next(line for line in table if line.startswith("| MLKV-2 ")).replace("  ", "")
    assert "bits per byte" in card
    assert "merge = mean" in card
    assert "corpus.files=[…/*.txt]" in card, "which folders this machine has is nobody's business"
    assert str(store.root.parents[1]) not in card


LOADED = """
import json, sys, torch
try:
    import mlkv
except ImportError:
    pass
else:
    sys.exit(f"mlkv can be imported from {mlkv.__path__}")
from transformers import AutoModelForCausalLM, AutoTokenizer
found = []
for out, to in zip(sys.argv[1::2], sys.argv[2::2]):
    code = to in ("transformers", "vllm")
    file = "model.gguf" if to == "gguf" else None
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=code, gguf_file=file).eval()
    ids = AutoTokenizer.from_pretrained(out, trust_remote_code=code)("fox jumps").input_ids
    with torch.no_grad():
        found.append([ids, model(torch.tensor([ids])).logits.tolist()])
print("FOUND", json.dumps(found))
"""


def fresh_environment(folder: Path) -> Path:
    """The Python of an environment that has this one's torch and transformers, and not this project."""
    venv.create(folder)
    [packages] = folder.glob("lib/python*/site-packages")
    # The .pth files of a folder that is named so are not read, nor then is that of a project in development.
    (packages / "others.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "bin" / "python"


@pytest.mark.long
def test_an_environment_without_this_project_computes_our_logits_from_each_export(store: Store, tmp_path: Path) -> None:
    exports = {"transformers": "MLKV-2", "native": "GQA-12", "vllm": "MLKV-4", "gguf": "untouched"}
    words: list[str] = []
    for to, label in exports.items():
        assert export(store, "made", label, tmp_path / to, "--to", to) == 0
        words += [str(tmp_path / to), to]
    home = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [str(fresh_environment(tmp_path / "environment")), "-I", "-c", LOADED, *words]
    done = subprocess.run(command, env={**os.environ, **home}, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.split("FOUND", 1)[1])
    for label, (ids, logits) in zip(exports.values(), found, strict=True):
        with torch.no_grad():
            ours = load_checked(_checkpoint(store, label)).eval()(torch.tensor([ids])).logits
        torch.testing.assert_close(torch.tensor(logits), ours, rtol=0, atol=1e-5)


def _checkpoint(store: Store, label: str) -> Path:
    kind = "base" if label == "untouched" else "convert"
    return store.step(next(id for id in steps(store, label) if id.startswith(kind))).out


def test_a_native_export_is_the_familys_own_model(store: Store, tmp_path: Path) -> None:
    assert export(store, "made", "GQA", tmp_path / "out", "--to", "native") == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architectures"], config["num_key_value_heads"]) == (["LlamaForCausalLM"], 2)
    assert not list((tmp_path / "out").glob("*.py"))
    assert "| GQA-12 (collapsed) |" in (tmp_path / "out" / "README.md").read_text(), "after so short a training"


def test_a_step_id_a_part_of_a_label_and_a_glob_name_a_checkpoint(store: Store, tmp_path: Path) -> None:
    [converted] = [id for id in steps(store, "MLKV-4") if id.startswith("convert")]
    for i, words in enumerate([["made", "kv-4"], ["made", "*-4"], ["made", converted[:16]], [converted[:16]]]):
        assert export(store, *words, tmp_path / str(i)) == 0
        manifest = json.loads((tmp_path / str(i) / "export.json").read_text())
        assert manifest["steps"][-1] == converted
        assert "# MLKV-4 of made" in (tmp_path / str(i) / "README.md").read_text()


def test_an_earlier_export_is_replaced_and_nothing_else_is(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for label in ("MLKV-2", "MLKV-4"):
        assert export(store, "made", label, out) == 0
    assert load_checked(out).layout.budget == 4
    (out / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert export(store, "made", "MLKV-2", out) == 2
    assert capsys.readouterr().err == (
        f"mlkv: DIR = {out}: holds notes.txt, which no export wrote; name a new or an empty directory\n"
    )
    assert load_checked(out).layout.budget == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["made", "MLKV"], "MLKV: is in several variants (MLKV-2, MLKV-4); name one"),
        (["made", "GQA-2"], "GQA-2: no variant of sweep made; did you mean GQA-12?"),
        (["mad", "MLKV-2"], "sweep mad: not in"),
        (["evaluate-"], "step evaluate-: 4 steps of that name in"),
        (["corpus-"], "has no checkpoint; export a base, convert or uptrain step"),
        (["made", "MLKV-2", "--to", "natif"], "--to = natif: did you mean native? valid:"),
        (
            ["made", "MLKV-2", "--to", "native"],
            "--to native: no family of the table has layers that read another layer's keys and values; ",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    words: list[str], message: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    position = words.index("--to") if "--to" in words else len(words)
    assert export(store, *words[:position], tmp_path / "out", *words[position:]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: NAME VARIANT|STEP, DIR; `mlkv export --help`"),
        (["made"], "the following arguments are required: DIR; `mlkv export --help`"),
        (["made", "MLKV-2", ""], "argument DIR: must not be empty; `mlkv export --help`"),
        (["made", "MLKV-2", "more", "out"], "made MLKV-2 more: must be NAME VARIANT, or STEP, and then a directory"),
    ],
)
def test_missing_and_surplus_words_are_refused(
    words: list[str], message: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(store, *words) == 2
    assert capsys.readouterr().err == f"mlkv: export: {message}\n"


def test_a_damaged_checkpoint_is_not_exported(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = _checkpoint(store, "MLKV-2") / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        assert export(store, "made", "MLKV-2", tmp_path / "out") == 2
    finally:
        weights.write_bytes(content)
    assert "model.safetensors" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_shell_completes_the_sweep_and_then_the_variant(store: Store) -> None:
    from argparse import Namespace

    assert complete_word("", parsed_args=Namespace(store=store.root, words=[])) == ["made"]
    labels = complete_word("", parsed_args=Namespace(store=store.root, words=["made"]))
    assert set(labels) == {"untouched", "GQA-12", "MLKV-2", "MLKV-4"}
    assert complete_word("", parsed_args=Namespace(store=store.root, words=["made", "MLKV-2"])) == []


PUSHING = """
import sys
from sweeps.cli import main
main(["export", "made", "MLKV-2", *sys.argv[1:]])
"""


def pushed(store: Store, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`mlkv export --push`, in a process of its own: the hub's client reads its address once."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env = {**others, "HF_HOME": str(out.parent / "home"), "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PUSHING, str(out), "--push", "someone/made", "--store", str(store.root)]
    return subprocess.run(
        command, env={**env, **environment}, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


@pytest.mark.long
def test_an_export_is_uploaded_as_it_is_written(store: Store, tmp_path: Path) -> None:
    with uploads() as hub:
        for _ in range(2):  # the second finds the repository there
            done = pushed(store, tmp_path / "out", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
            assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.split() == [str(tmp_path / "out"), f"{hub.url}/someone/made/commit/{COMMIT}"]
        assert hub.private == {"someone/made": True}
        files = hub.repositories["someone/made"]
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert 'from_pretrained("someone/made", trust_remote_code=True)' in files["README.md"].decode()
        refused = pushed(store, tmp_path / "out", HF_ENDPOINT=hub.url, HF_TOKEN="hf_of_nobody")
    assert refused.returncode == 2
    assert refused.stderr.startswith("mlkv: --push = someone/made: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someone/made", "--push: no token for the hub: run `hf auth login`, or set HF_TOKEN"),
        ("made", "--push = made: must be USER/REPO"),
        ("a b/c", "--push = a b/c: must be USER/REPO (Repo id must"),
    ],
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_written(
    name: str,
    message: str,
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert export(store, "made", "MLKV-2", tmp_path / "out", "--push", name) == 2
    assert capsys.readouterr().err.startswith(f"mlkv: {message}")
    assert not list(tmp_path.iterdir())
