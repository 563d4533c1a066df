"""A store with a damaged file, of every kind and in every way, before every command: no traceback, one line that names
the file, and what does not need it is shown."""

from __future__ import annotations

import json
import random
import re
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from tests.support.commands import COMMANDS, OLD_STORE, SLOW, nothing_computes
from tests.support.failing_files import refusing
from tests.support.shell import exit_status

FAILED = "steps/uptrain/uptrain-426fc9a7f690d7d8"
SCORED = "steps/evaluate/evaluate-c61c7b370095f245"
CORPUS = "steps/corpus/corpus-4c8bd4c9072feb1b"
MEASURED = "steps/measure/measure-24a0a4ec90a324da"
PLAN = "sweeps/old/2"

FILES = {
    "spec": f"{SCORED}/spec.json",
    "how": f"{FAILED}/how.json",
    "done": f"{SCORED}/done.json",
    "done of a measurement": f"{MEASURED}/done.json",
    "done of a corpus": f"{CORPUS}/done.json",
    "withdrawn": f"{FAILED}/done.corrupt-1.json",
    "record": f"{FAILED}/attempts/1/record.json",
    "exit": f"{FAILED}/attempts/1/exit.json",
    "environment": f"{FAILED}/attempts/1/env.json",
    "metrics": f"{FAILED}/attempts/1/metrics.jsonl",
    "claim": f"{FAILED}/claim.json",
    "heartbeat": f"{FAILED}/attempts/1/heartbeat",
    "log": f"{FAILED}/attempts/1/err.log",
    "results": f"{SCORED}/out/results.json",
    "samples": f"{SCORED}/out/scores/bits_per_byte.samples",
    "manifest": f"{CORPUS}/out/manifest.json",
    "plan": f"{PLAN}/plan.json",
    "variants": f"{PLAN}/variants.jsonl",
    "overrides": f"{PLAN}/overrides.txt",
    "plan of another sweep": "sweeps/stopped/1/plan.json",
    "jobs": "queue/jobs.jsonl",
    "digests": "cache/digests.json",
    "digests of the user": "user/mlkv/digests.json",
    "mark": "sweeps/old/wandb/written/uptrain-426fc9a7f690d7d8.json",
    "address": "sweeps/old/wandb/address.json",
    "run of W&B": "sweeps/old/wandb/offline-run-20260101_000000-x/run-x.wandb",
    "import": "imports/theirs.csv",
    "submission": "queue/mlkv-uptrain-0a1b2c3d/record.json",
    "tracking log": f"{FAILED}/attempts/1/tracking.log",
    "checkpoint": f"{FAILED}/work/checkpoint-2/model.safetensors",
}
CACHES = ("digests", "digests of the user", "mark", "address")
"""Thrown away without a word."""
FOLDERS = {
    "a step": FAILED,
    "attempts": f"{FAILED}/attempts",
    "attempt": f"{FAILED}/attempts/1",
    "output": f"{SCORED}/out",
    "work": f"{FAILED}/work",
    "steps of a kind": "steps/uptrain",
    "steps": "steps",
    "sweep": "sweeps/old",
    "sweeps": "sweeps",
    "numbered plan": PLAN,
    "W&B's files": "sweeps/old/wandb",
    "queue": "queue",
    "imports": "imports",
    "code": "code",
}
PLACES = {**FILES, **FOLDERS}


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x15]) + content[at + 1 :]


def _with_numbers(content: bytes, wrong: str) -> bytes:
    """Another number in place of each."""
    return re.sub(rb"(?<=[ :,])-?\d+(\.\d+)?(?=[,\n}\]\r])", wrong.encode(), content)


Damage = Callable[[bytes], bytes]
CONTENTS: dict[str, Damage] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "end": lambda content: content[:-3],
    "flip early": lambda content: _flipped(content, len(content) // 5) if content else b"\x15",
    "flip late": lambda content: _flipped(content, 4 * len(content) // 5) if content else b"\x15",
    "zeros": lambda content: bytes(len(content) or 9),
    "not utf-8": lambda content: content.replace(b"e", b"\xff\xfe") or b"\xff",
    "list": lambda content: b"[]\n",
    "text": lambda content: b'"x"\n',
    "null": lambda content: b"null\n",
    "number": lambda content: b"1\n",
    "object": lambda content: b"{}\n",
    "deep": lambda content: b'{"a": ' + b"[" * 100_000 + b"\n",
    "nan": lambda content: _with_numbers(content, "NaN"),
    "infinite": lambda content: _with_numbers(content, "-Infinity"),
    "huge": lambda content: _with_numbers(content, "1" + "0" * 400),
    "large": lambda content: _with_numbers(content, "1" + "0" * 25),
    "nested": lambda content: _with_numbers(content, "[" * 5000 + "]" * 5000),
    "negative": lambda content: _with_numbers(content, "-7"),
    "words": lambda content: _with_numbers(content, '"seven"'),
}
DAMAGES = (*CONTENTS, "gone", "folder")
WRECKS = ("gone", "file", "link to nothing", "link to itself", "refused", "junk beside")
"""What can happen to a place, a file's or a folder's."""
JUNK = (".DS_Store", "²", "07", "notes.txt", "done.corrupt-x.json", ".nfs0001", "a-b", "1.5", "x.csv")


@dataclass(frozen=True)
class Damaged:
    """A copy of the fixture store to damage and to work on, in a folder that is the working directory."""

    root: Path
    whole: Path

    def renew(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.whole, self.root)

    def damage(self, file: str, how: str) -> Path:
        path = self.root / PLACES[file]
        if how in CONTENTS:
            path.write_bytes(CONTENTS[how](path.read_bytes()))
        elif how == "junk beside":
            for name in JUNK:
                (path.parent / name).write_bytes(b"\xff\x00")
        elif how != "refused":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            if how == "folder":
                path.mkdir()
            elif how == "file":
                path.write_bytes(b"\xff\x00")
            elif how != "gone":
                path.symlink_to("nowhere" if how == "link to nothing" else path.name)
        return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture store, with every kind of file."""
    root = tmp_path_factory.mktemp("whole") / "store"
    shutil.copytree(OLD_STORE / "store", root)
    done = json.loads((root / FILES["done"]).read_text())
    attempt = root / FAILED / "attempts/1"
    (root / FILES["withdrawn"]).write_text(json.dumps({**done, "set_aside": "it was damaged"}))
    (root / FILES["record"]).write_text(json.dumps(done))
    (attempt / "out").mkdir()
    claim = {
        "host": "elsewhere",
        "pid": 1,
        "started": 1.5,
        "boot": None,
        "namespace": None,
        "ticks": None,
        "token": "x",
    }
    (root / FILES["claim"]).write_text(json.dumps(claim))
    for name in FILES:
        (root / FILES[name]).parent.mkdir(parents=True, exist_ok=True)
    (root / "code").mkdir()
    for name in ("digests of the user", "address", "run of W&B", "submission", "tracking log", "checkpoint"):
        (root / FILES[name]).write_text("{}")
    (root / FILES["heartbeat"]).touch()
    (root / FILES["log"]).write_text("it diverged\n")
    (root / FILES["jobs"]).write_text(json.dumps({"name": "a", "steps": [FAILED[-24:]], "sweep": "old"}) + "\n")
    (root / FILES["digests"]).write_text(json.dumps({"/x": [1, 2, "ab"]}))
    (root / FILES["mark"]).write_text(json.dumps({"fingerprint": "ab"}))
    return root


@pytest.fixture
def damaged(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Damaged]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "store" / "user"))
    with nothing_computes(tmp_path):
        yield Damaged(tmp_path / "store", whole)


Case = tuple[str, str, str]
ALL: list[Case] = [*product(FILES, DAMAGES, COMMANDS), *product(PLACES, WRECKS, COMMANDS)]


def fault_of(damaged: Damaged, case: Case, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with a command's word on a damaged file, or None."""
    file, how, command = case
    damaged.renew()
    path = damaged.damage(file, how)
    capsys.readouterr()
    try:
        with refusing(path) if how == "refused" else nullcontext():
            status = exit_status(*COMMANDS[command], "--store", str(damaged.root))
    except Exception as error:
        return "".join(traceback.format_exception(error)[-3:])
    printed = capsys.readouterr()
    words = printed.out + printed.err
    if "Traceback" in words:
        return words
    if status == 2 and (
        printed.err.count("\n") != 1
        or not any(name in words for name in (path.stem, path.parent.name, path.parents[1].name))
    ):
        return f"{status}: {words}"
    if file in CACHES and (status == 2 or path.name in words):
        return f"not thrown away: {words}"
    return None


def sample(commands: Sequence[str], size: int) -> list[Case]:
    """Some of all cases, always the same."""
    return random.Random(size).sample([case for case in ALL if case[2] in commands], size)


QUICK = [name for name in COMMANDS if name not in SLOW]
LIKE_LS = ("du", "note", "mv", "rm", "diff")
"""Commands that read of a store what others read; the samples above have them too."""


def test_a_command_names_a_damaged_file_in_one_line(damaged: Damaged, capsys: pytest.CaptureFixture[str]) -> None:
    faults = {case: fault_of(damaged, case, capsys) for case in sample(QUICK, 12)}
    assert not {case: fault for case, fault in faults.items() if fault}


@pytest.mark.parametrize("how", ["empty", "half", "flip late", "not utf-8", "object", "large", "words"])
def test_a_damaged_import_is_named(damaged: Damaged, capsys: pytest.CaptureFixture[str], how: str) -> None:
    damaged.renew()
    path = damaged.damage("import", how)
    assert exit_status("table", "theirs", "--store", str(damaged.root)) == 2
    words = capsys.readouterr().err
    assert re.fullmatch(rf"mlkv: {path}: line \d+: .*; import the results again, or delete it\n", words)


@pytest.mark.long(minutes=9)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in LIKE_LS])
def test_every_command_names_every_damaged_file_in_one_line(
    damaged: Damaged, capsys: pytest.CaptureFixture[str], command: str, file: str
) -> None:
    """One damage in seven, as all of them take over an hour. Each command and each file meets every damage."""
    first = (list(COMMANDS).index(command) + list(FILES).index(file)) % 7
    faults = {how: fault_of(damaged, (file, how, command), capsys) for how in list(DAMAGES)[first::7]}
    assert not {how: fault for how, fault in faults.items() if fault}
