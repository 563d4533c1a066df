"""A store with a damaged file, of every kind and in every way, before every command: no traceback, one line that names
the file, and what does not need it is shown."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from tests.support.commands import COMMANDS, OLD_STORE, SLOW, nothing_computes
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
    "mark": "sweeps/old/wandb/written/uptrain-426fc9a7f690d7d8.json",
    "import": "imports/theirs.csv",
}
CACHES = ("digests", "mark")
"""Thrown away without a word."""


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


@dataclass(frozen=True)
class Damaged:
    """A copy of the fixture store to damage and to work on, in a folder that is the working directory."""

    root: Path
    whole: Path

    def renew(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.whole, self.root)

    def damage(self, file: str, how: str) -> Path:
        path = self.root / FILES[file]
        content = path.read_bytes()
        if how in CONTENTS:
            path.write_bytes(CONTENTS[how](content))
        else:
            path.unlink()
            if how == "folder":
                path.mkdir()
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
    for name in ("heartbeat", "jobs", "digests", "mark"):
        (root / FILES[name]).parent.mkdir(parents=True, exist_ok=True)
    (root / FILES["heartbeat"]).touch()
    (root / FILES["log"]).write_text("it diverged\n")
    (root / FILES["jobs"]).write_text(json.dumps({"name": "a", "steps": [FAILED[-24:]], "sweep": "old"}) + "\n")
    (root / FILES["digests"]).write_text(json.dumps({"/x": [1, 2, "ab"]}))
    (root / FILES["mark"]).write_text(json.dumps({"fingerprint": "ab"}))
    return root


@pytest.fixture
def damaged(tmp_path: Path, whole: Path) -> Iterator[Damaged]:
    with nothing_computes(tmp_path):
        yield Damaged(tmp_path / "store", whole)


Case = tuple[str, str, str]
ALL: list[Case] = [*product(FILES, DAMAGES, COMMANDS)]


def fault_of(damaged: Damaged, case: Case, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with a command's word on a damaged file, or None."""
    file, how, command = case
    damaged.renew()
    path = damaged.damage(file, how)
    capsys.readouterr()
    try:
        status = exit_status(*COMMANDS[command], "--store", str(damaged.root))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    printed = capsys.readouterr()
    words = printed.out + printed.err
    if "Traceback" in words:
        return words
    if status == 2 and (printed.err.count("\n") != 1 or (path.name not in words and path.parent.name not in words)):
        return f"{status}: {words}"
    if file in CACHES and (status == 2 or path.name in words):
        return f"not thrown away: {words}"
    return None


def sample(commands: Sequence[str], size: int) -> list[Case]:
    """Some of all cases, always the same."""
    return random.Random(size).sample([case for case in ALL if case[2] in commands], size)


QUICK = [name for name in COMMANDS if name not in SLOW]


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


@pytest.mark.long
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_every_damaged_file_in_one_line(
    damaged: Damaged, capsys: pytest.CaptureFixture[str], command: str, file: str
) -> None:
    """One damage in seven, as all of them take over an hour. Each command and each file meets every damage."""
    first = (list(COMMANDS).index(command) + list(FILES).index(file)) % 7
    faults = {how: fault_of(damaged, (file, how, command), capsys) for how in list(DAMAGES)[first::7]}
    assert not {how: fault for how, fault in faults.items() if fault}
