"""What a step printed and the packages that it ran with, in its run: all of it, once, without keys."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.store.attempt import Attempt
from sweeps.store.schema import Environment
from sweeps.store.store import Store
from sweeps.tracking import console, redaction
from sweeps.tracking.console import CONSOLE_KEY, Console, attempt_console, sent_lines, step_console
from sweeps.tracking.read.files import read_directory
from sweeps.tracking.redaction import HIDDEN, redact
from sweeps.tracking.runs import step_run
from sweeps.tracking.sync import sync_files
from sweeps.tracking.target import Target, TrackingConfig
from sweeps.worker.packages import installed_packages
from tests.support.tracked import Acted, Planner, Stage, arrives, make_stage, training
from tests.support.wandb_graphql import LOGS, StoredRun
from tests.support.wandb_server import KEY, WandbServer


@pytest.fixture
def stage(planner: Planner, tiny: list[str], tmp_path: Path) -> Stage:
    return make_stage(planner, tiny, tmp_path, mode="online")


def say(acted: Acted, out: str, err: str = "") -> None:
    for path, text in ((acted.claim.attempt.stdout, out), (acted.claim.attempt.stderr, err)):
        with path.open("a") as file:
            file.write(text)


def printed(run: StoredRun) -> list[str]:
    """Without the time that W&B puts before each line."""
    return [line.partition(" ")[2] for line in run.lines.get(LOGS, [])]


def note_packages(acted: Acted, store: Store) -> None:
    """As the supervisor does before the attempt begins to compute."""
    packages = store.note_packages(installed_packages())
    acted.claim.attempt.write_environment(Environment(host="node", device="cpu", versions={}, packages=packages))


@pytest.mark.long
def test_the_log_of_all_attempts_arrives_once_while_the_step_runs_and_later(stage: Stage, server: WandbServer) -> None:
    step = stage.id("uptrain")
    mirror = stage.mirror()
    acted = stage.begin(mirror, step)
    note_packages(acted, stage.store)
    say(acted, "loading\n 10%\r 50%\r100%\n", f"warning: the key is {KEY}\nhalf a li")
    arrives(lambda: step in server.runs and "warning: the key is ***" in printed(server.runs[step]))
    assert "half a li" not in printed(server.runs[step]), "it may go on"
    acted.end("interrupted")
    mirror.close()
    mirror = stage.mirror()
    acted = stage.begin(mirror, step)
    say(acted, "again\n")
    acted.log(training(1, 3))
    acted.end()
    mirror.close()

    run = server.runs[step]
    expected = ["== attempt 1, out.log", "loading", "100%", "== attempt 1, err.log", "warning: the key is ***"]
    expected += ["half a liinterrupted: asked to stop", "== attempt 2, out.log", "again"]
    assert sorted(printed(run)) == sorted(expected)
    assert run.files["requirements.txt"].decode() == installed_packages()
    assert sent_lines(run.summary[CONSOLE_KEY]) == step_console(stage.store.step(step)).lines
    assert (run.shown["groupName"], run.shown["tags"]) == (stage.id("base"), ["tiny"])
    failed, done = stage.sync()
    assert (failed, done[step].outcome) == (0, "already there")
    assert sorted(printed(run)) == sorted(expected)


@pytest.mark.long
def test_sync_adds_what_is_missing_of_a_log_and_nothing_twice(stage: Stage, server: WandbServer) -> None:
    step = stage.id("base")
    stage.config = replace(stage.config, mode="off")
    acted = stage.begin(stage.mirror(), step)
    say(acted, "one\ntwo\n")
    acted.end()
    stage.config = replace(stage.config, console=False)
    assert stage.sync()[1][step].outcome == "sent"
    assert not printed(server.runs[step])
    assert "requirements.txt" not in server.runs[step].files
    assert stage.sync()[1][step].outcome == "already there"
    server.runs[step].shown["tags"] = ["for the paper"]
    stage.config = replace(stage.config, console=True)
    for outcome in ("sent", "already there"):
        assert stage.sync()[1][step].outcome == outcome
        assert printed(server.runs[step]) == ["== attempt 1, out.log", "one", "two"]
    assert set(server.runs[step].shown["tags"]) == {"for the paper", "tiny"}


@pytest.mark.long
def test_offline_files_hold_the_log_and_are_sent_with_it(
    planner: Planner, tiny: list[str], tmp_path: Path, server: WandbServer
) -> None:
    stage = make_stage(planner, tiny, tmp_path, mode="offline")
    step, mirror = stage.id("base"), stage.mirror()
    for state in ("interrupted", "done"):
        acted = stage.begin(mirror, step)
        note_packages(acted, stage.store)
        say(acted, f"{state}\n")
        acted.end(state)
    mirror.close()
    assert not server.requests
    files = stage.store.tracking("tiny").runs
    (run,) = (run for run in read_directory(files) if run.id == step)
    expected = list(step_console(stage.store.step(step)).after({}))
    assert run.console == expected
    assert len(expected) == 6
    assert {e.run: e.outcome for e in sync_files(files, Target(TrackingConfig(mode="online")))}[step] == "sent"
    assert printed(server.runs[step]) == expected
    assert server.runs[step].files["requirements.txt"].decode() == installed_packages()
    assert stage.sync()[1][step].outcome == "already there"


@given(st.lists(st.tuples(st.booleans(), st.text("ab\n\r", max_size=8)), max_size=8), st.sets(st.integers(0, 8)))
def test_however_often_it_is_read_while_it_grows_every_line_is_sent_once(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, str]], looks: set[int]
) -> None:
    path = tmp_path_factory.mktemp("attempt") / "1"
    path.mkdir()
    attempt = Attempt(path)
    sent: dict[str, int] = {}
    lines: list[str] = []
    for at, (to_stderr, text) in enumerate(pieces):
        with (attempt.stderr if to_stderr else attempt.stdout).open("a", newline="") as file:
            file.write(text)
        if at in looks:
            found = attempt_console(attempt)
            lines += found.after(sent)
            sent |= found.lines
    attempt.finish("done", "", 0)
    whole = attempt_console(attempt, ended=True)
    lines += whole.after(sent)
    assert sorted(lines) == sorted(whole.after({}))


def test_a_long_log_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "MAX_LINES", 3)
    (tmp_path / "1").mkdir()
    attempt = Attempt(tmp_path / "1")
    attempt.stdout.write_text("1\n2\n3\n4\n5\n")
    first = attempt_console(attempt)
    assert list(first.after({}))[1:] == ["1", "2", "3", "… the rest is in out.log of the store"]
    attempt.stdout.write_text("1\n2\n3\n4\n5\n6\n")
    assert not list(attempt_console(attempt).after(first.lines))


@pytest.mark.parametrize(
    "text",
    ["hf_aBcDeFgHiJkLmNoPqRsT", "Authorization: Bearer abcdefghijklmnopqrstu", "https://me:pass@host/x",
     "ghp_abcdefghijklmnop1234", "AKIAABCDEFGHIJKLMNOP", "psql password=hunter22 host=x"],
)  # fmt: skip
def test_keys_of_known_forms_are_hidden(text: str) -> None:
    hidden = redact(f"see {text}")
    assert HIDDEN in hidden
    assert not {"hunter22", "pass@", text.split()[-1].rpartition("=")[2]} & set(hidden.replace("@", "@ ").split())


@pytest.mark.parametrize("text", ["loss 2.5, tokens=1234567", "steps/uptrain/uptrain-0123456789abcdef", "a" * 40,
                                  "see https://huggingface.co/docs"])  # fmt: skip
def test_what_is_no_key_stays(text: str) -> None:
    assert redact(text) == text


def test_values_of_variables_that_hold_keys_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse")
    monkeypatch.setenv("SSH_KEY_FILE", "/home/me/key")
    redaction._secret_values.cache_clear()
    try:
        assert redact("it said correct horse, from /home/me/key") == "it said ***, from /home/me/key"
    finally:
        redaction._secret_values.cache_clear()


def test_a_run_says_which_base_it_descends_from_whatever_sweep_writes_it(stage: Stage) -> None:
    for id, planned in stage.saved.plan.steps.items():
        ours = step_run(stage.store, stage.store.step(id), stage.saved)
        alone = step_run(stage.store, stage.store.step(id))
        assert ours.group == alone.group == (None if planned.kind in ("corpus", "measure") else stage.id("base"))
        assert ours.fingerprint == alone.fingerprint
        assert (ours.sweeps, alone.sweeps) == (("tiny",), ())


def test_numbers_that_a_person_has_overwritten_count_as_none() -> None:
    assert [sent_lines(text) for text in ("", "{", "[1]", None, json.dumps({"1 out.log": 2, "x": "y"}))] == [
        {}, {}, {}, {}, {"1 out.log": 2}
    ]  # fmt: skip
    assert Console().is_within({})
