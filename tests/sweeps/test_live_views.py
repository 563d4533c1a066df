"""The live views of a sweep on a pseudo-terminal, with the rows that each kind of step logs."""

from __future__ import annotations

import json
import re
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sweeps.cli import progress, status
from sweeps.cli.console import make_console
from sweeps.cli.progress import Progress
from sweeps.cli.view import watch_view
from sweeps.planning.reconcile import Graph
from sweeps.steps.registry import KINDS
from sweeps.steps.step import Step
from sweeps.store.states import StepState
from sweeps.store.stepdir import Claim, State
from sweeps.store.store import Store
from sweeps.store.typed_json import as_json
from tests.support.logged import OLD_STORE, logged
from tests.support.outputs import terminal

WIDTHS = (40, 80, 200)


def steps_of_all_kinds() -> Graph:
    steps = [Step(kind, {"x": kind}, label=f"{kind} [/of] a long label") for kind in KINDS]
    return {step.id: step for step in steps}


def write(claim: Claim, row: Any) -> None:
    with claim.attempt.metrics_file.open("a") as file:
        file.write(json.dumps(row) + "\n")


def claims_of(graph: Graph, store: Store) -> dict[str, Claim]:
    claims = {step.kind: store.step(id).claim() for id, step in graph.items()}
    return {kind: claim for kind, claim in claims.items() if claim}


@pytest.mark.parametrize("columns", WIDTHS)
def test_a_sweep_shows_every_kind_while_it_runs(columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    graph, store = steps_of_all_kinds(), Store.open(tmp_path)
    with terminal(columns) as text, Progress(make_console(), graph, store, slots=2) as live:
        claims = claims_of(graph, store)
        for i in range(3):
            for kind, claim in claims.items():
                write(claim, as_json(logged(kind)[min(i, len(logged(kind)) - 1)]))
            live()
        for claim in claims.values():
            claim.attempt.finish("failed", "no memory", 1, True)
            claim.release()
        live()
    shown = text()
    assert len(claims) == len(KINDS)
    assert "the live view" not in shown
    assert all(f"✗ {kind}" in plain(shown) for kind in KINDS)


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize("columns", WIDTHS)
def test_watching_shows_every_kind_until_none_runs(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(OLD_STORE, tmp_path / "store")
    store = Store(tmp_path / "store")
    saved, graph = store.sweep("old"), steps_of_all_kinds()
    claims = claims_of(graph, store)
    left = [{kind: logged(kind)[i : i + 1] for kind in KINDS} for i in range(3)]

    def next_rows(_seconds: float) -> None:
        if not left:
            for claim in claims.values():
                claim.release()
            return
        for kind, rows in left.pop().items():
            for row in rows:
                write(claims[kind], as_json(row))

    monkeypatch.setattr("time.sleep", next_rows)
    with terminal(columns) as text:
        status._watch(make_console(), graph, saved, store)
    assert "the live view" not in text()
    assert all(f"{kind}-" in text() for kind in KINDS)
    assert "RUNNING" in text()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
NAMES = st.sampled_from(["step", "steps", "loss", "tokens", "tokens_per_second", "time", "stage", "batch"])


ROWS = st.lists(JSON | st.dictionaries(NAMES, JSON, max_size=6), max_size=3)


@settings(max_examples=8)
@given(ROWS)
def test_no_row_of_any_kind_ends_a_view(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    """An extension's step may log what it likes, and its file may be damaged."""
    check_rows(tmp_path_factory, rows)


@pytest.mark.long
@settings(max_examples=500)
@given(ROWS)
def test_no_row_at_all_ends_a_view(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    check_rows(tmp_path_factory, rows)


def check_rows(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    step = Step("extension", {"x": 1}, label="any")
    store = Store.open(tmp_path_factory.mktemp("rows"))
    with pytest.MonkeyPatch.context() as patched, terminal(40) as text:
        patched.setattr(progress, "REDRAW_SECONDS", 0.0)
        with Progress(make_console(), {step.id: step}, store, slots=1) as live:
            claim = store.step(step.id).claim()
            assert claim
            for row in rows:
                write(claim, row)
                live()
            claim.release()
    assert "the live view" not in text()


def _lacks_tokens(*_: object) -> None:
    raise KeyError("tokens")


def test_an_error_in_a_view_ends_neither_a_sweep_nor_a_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(OLD_STORE, tmp_path / "store")
    store = Store(tmp_path / "store")
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0.0)
    monkeypatch.setattr(Progress, "_render", _lacks_tokens)
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr("sweeps.cli.view.watch_view", _lacks_tokens)
    with terminal() as text:
        with Progress(make_console(), steps_of_all_kinds(), store, slots=1) as live:
            live()
            live()
        status._watch(make_console(), steps_of_all_kinds(), store.sweep("old"), store)
    assert text().count("the live view: KeyError: 'tokens'") == 2, "once by each"


def test_a_screen_that_is_too_low_shows_what_runs_or_needs_a_person(tmp_path: Path) -> None:
    graph = steps_of_all_kinds()
    states = {id: State(StepState.DONE) for id in graph}
    running, failed = list(graph)[-2:]
    states |= {running: State(StepState.RUNNING), failed: State(StepState.FAILED, "no memory")}
    for height, shown in ((30, len(graph)), (6, 2)):
        console = Console(width=60, height=height, record=True, file=StringIO(), force_terminal=True, markup=False)
        console.print(watch_view(graph, states, console))
        text = console.export_text()
        assert f"{len(graph) - 2} done, 1 running, 1 failed" in text
        assert sum(id in text for id in graph) == shown
        assert running in text
        assert "no memory" in text


def test_watching_goes_on_between_two_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = steps_of_all_kinds()
    ended, pending = {id: State(StepState.DONE) for id in graph}, State(StepState.PENDING)
    first, *_, last = graph
    looks = [
        {**ended, first: State(StepState.RUNNING), last: pending},
        *[{**ended, last: pending}] * (status.QUIET_LOOKS - 1),
        {**ended, last: State(StepState.RUNNING)},
        ended,
        {**ended, last: State(StepState.FAILED)},
    ]
    monkeypatch.setattr(status, "WATCH_SECONDS", 0.0)
    monkeypatch.setattr(status, "_states_and_jobs", lambda *_: (looks.pop(0), {}))
    saved = Store(OLD_STORE).sweep("old")
    assert status._watch(make_console(), graph, saved, Store(tmp_path)) == (graph, ended)
    assert len(looks) == 1
    looks[:] = [{**ended, last: pending}] * (status.QUIET_LOOKS + 1)
    status._watch(make_console(), graph, saved, Store(tmp_path))
    assert len(looks) == 1, "its command has ended"
