"""Writes runs to W&B, in a process that mirrors and does nothing else.

Nothing here records what has arrived. Online, W&B gives the next step of a run that is resumed, and rows before it
are not sent again. Offline, W&B ignores `resume` and starts a new directory (a fragment) whose steps begin at 0, so
every fragment is written from the run's first row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from mlkv.files import Json
from sweeps.store.outside import plain_reason
from sweeps.store.states import NOTHING_LEFT, StepState
from sweeps.store.store import TrackingDir
from sweeps.tracking import artifacts
from sweeps.tracking.alerts import ALERTS_KEY, Alert
from sweeps.tracking.checkpoints import CHECKPOINT_KEY, Checkpoint
from sweeps.tracking.console import CONSOLE_KEY, Console, sent_lines
from sweeps.tracking.redaction import redact
from sweeps.tracking.runs import FINGERPRINT_KEY, Run
from sweeps.tracking.target import TrackingConfig

_RETRY_SETTINGS: dict[str, Any] = {
    "x_graphql_retry_max": 4,
    "x_graphql_retry_wait_max_seconds": 5.0,
    "x_file_transfer_retry_max": 4,
    "x_file_transfer_retry_wait_max_seconds": 5.0,
}
"""Few retries: what does not arrive now is sent by the next attempt or by `mlkv sync`."""
_RESUMABLE = (StepState.INTERRUPTED, StepState.RUNNING, StepState.PENDING)
"""Runs in these states end as "preempted" in W&B; others that are not done end as "failed"."""


LINES_AT_ONCE = 1000
"""Lines of a log in one message to W&B's own process."""


class MirrorError(Exception):
    """W&B could not be written to. The message never holds the API key."""


class ServiceEndedError(MirrorError):
    """The process through which wandb writes has ended; `restart_service` makes the next run start another."""


class OpenRun:
    """A W&B run that is open for writing. Every method raises MirrorError when W&B fails."""

    def __init__(self, run: Run, config: TrackingConfig, directory: TrackingDir, pid: int | None = None) -> None:
        """pid: the process whose CPU, memory and GPU are recorded; None: no system metrics."""
        _make_directory(directory)
        self._directory, self._online = directory, config.mode == "online"
        try:
            self._run = wandb.init(
                mode="online" if self._online else "offline",
                project=config.project,
                entity=config.entity,
                dir=str(directory.parent),
                id=run.id,
                # Of a run that is there already these would replace what a person made of them: see `_name`.
                name=None if self._online else run.name,
                tags=None if self._online else [*run.tags, *run.sweeps],
                group=run.group,
                job_type=run.job_type,
                resume="allow" if self._online else None,
                reinit="create_new",
                settings=_settings(config, pid),
            )
            if self._online:
                self._name(run)
                directory.note_address(self._run.project_url or "")
            self._write_description(run)
            self._attach(run.requirements)
        except Exception as error:  # W&B raises many types, its own and its libraries'; none may end the step
            raise _mirror_error(error) from None
        self._next_position = self._run.starting_step
        self._printed = sent_lines(self._run.summary.get(CONSOLE_KEY)) if self._run.resumed else {}

    @property
    def folder(self) -> str:
        """The name of this run's folder among W&B's files."""
        return Path(self._run.settings.sync_dir).name

    def _name(self, run: Run) -> None:
        """Ours are added to the tags that the run has, and its name is given once: people tag and rename runs."""
        if not self._run.resumed:
            self._run.name = run.name
        before = tuple(self._run.tags or ())
        if added := tuple(tag for tag in (*run.tags, *run.sweeps) if tag not in before):
            self._run.tags = (*before, *added)

    def _write_description(self, run: Run) -> None:
        self._run.config.update(run.config, allow_val_change=True)  # resumed runs have a configuration already
        self._run.summary.update({"state": run.state.value})
        # Charts are drawn against an axis of our own (optimizer steps, batch size): W&B's own step starts again at 0 in
        # every offline fragment, and `wandb sync` renumbers it over fragments.
        for prefix, axis in run.axes.items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{prefix}/*", step_metric=axis)

    def _attach(self, file: Path | None) -> None:
        """Have W&B send a file as it is now, under its own name."""
        if file:
            with suppress(OSError):  # the disk with W&B's folder is full: rows need none of it
                self._run.save(str(file), base_path=str(file.parent), policy="now", glob=False)

    def print(self, console: Console) -> None:
        """Add what W&B does not have of it to the run's log."""
        try:
            if lines := list(console.after(self._printed)):
                for start in range(0, len(lines), LINES_AT_ONCE):
                    self._run.write_logs("\n".join(lines[start : start + LINES_AT_ONCE]))
                self._printed |= console.lines
                # Behind the lines in one stream: where this has arrived, they have.
                self._run.summary.update({CONSOLE_KEY: json.dumps(self._printed)})
        except Exception as error:
            raise _mirror_error(error) from None

    def log(self, rows: Iterable[tuple[int, Json]]) -> None:
        """Log rows in order of position, leaving out those that the server has: W&B drops rows
        logged at an earlier step than before."""
        try:
            for position, values in rows:
                if position >= self._next_position:
                    self._run.log(values, step=position, commit=True)
                    self._next_position = position + 1
        except Exception as error:
            raise _mirror_error(error) from None

    def finish(self, run: Run) -> None:
        """Write the rest of the rows and the summary; wait until W&B has sent everything or given up."""
        self.log(run.rows)
        self.print(run.console)
        try:
            complete = {FINGERPRINT_KEY: run.fingerprint} if run.settled else {}
            self._run.summary.update({**run.summary, **complete})
            # Last of all: it may take long, and whatever becomes of it the run has the rest.
            problem = self._send_checkpoint(run.checkpoint)
            if run.state in _RESUMABLE:
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if run.state in NOTHING_LEFT else 1)
        except Exception as error:
            raise _mirror_error(error) from None
        if self._online:
            self._directory.drop_hollow(run.id)
        if problem:
            raise MirrorError(problem)

    def _send_checkpoint(self, checkpoint: Checkpoint | None) -> str:
        """Why W&B does not have it; empty where it does, or where nobody asked for it. Offline it stays in the store:
        `mlkv sync` sends it from there."""
        had = str(self._run.summary.get(CHECKPOINT_KEY) or "")
        if checkpoint is None or not self._online or checkpoint.is_in(had):
            return ""
        try:
            artifacts.send(self._run, checkpoint)
        except Exception as error:
            return f"its checkpoint as an artifact: {redacted(error)}"
        self._run.summary.update({CHECKPOINT_KEY: f"{had} {checkpoint.way}".strip()})
        return ""

    def alert(self, alert: Alert) -> None:
        """Have W&B tell people; only once about one thing."""
        try:
            sent = str(self._run.summary.get(ALERTS_KEY) or "").split("; ")
            if self._online and alert.once not in sent:
                self._run.alert(alert.title, alert.text, level="ERROR" if alert.bad else "INFO")
                self._run.summary.update({ALERTS_KEY: "; ".join(filter(None, [*sent, alert.once]))})
        except Exception as error:
            raise _mirror_error(error) from None


def connect_briefly() -> None:
    """Settings for a command that a person waits for: rows too are given up after a minute without a server."""
    requests: dict[str, Any] = {"x_graphql_retry_max": 3, "x_graphql_retry_wait_max_seconds": 2.0}
    rows: dict[str, Any] = {"x_file_stream_retry_max": 10, "x_file_stream_retry_wait_max_seconds": 5.0}
    wandb.setup(wandb.Settings(**requests, **rows))


def write(run: Run, config: TrackingConfig, directory: TrackingDir) -> None:
    """Write a complete run at once; offline, in place of the fragments that were written of it before."""
    opened = OpenRun(run, config, directory)
    opened.finish(run)
    if config.mode == "offline":
        directory.drop_before(opened.folder, run.id)
        if run.settled:
            directory.mark_written(run.id, run.fingerprint)


def restart_service() -> None:
    """Give up the dead process without waiting for it; the next run starts another and writes again what was lost."""
    with suppress(Exception, SystemExit):
        wandb.teardown(exit_code=1)
    os.environ.pop("WANDB_SERVICE", None)


def _mirror_error(error: Exception) -> MirrorError:
    ended = isinstance(error, ConnectionError | MailboxClosedError | HandleAbandonedError)
    return (ServiceEndedError if ended else MirrorError)(redacted(error))


def _make_directory(directory: TrackingDir) -> None:
    """Make W&B's directory, or raise: where it cannot be made, W&B writes to /tmp and reports nothing."""
    try:
        directory.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MirrorError(f"{directory.runs}: {plain_reason(error)}") from None


def _settings(config: TrackingConfig, pid: int | None) -> wandb.Settings:
    system: dict[str, Any] = (
        {"x_stats_pid": pid, "x_stats_track_process_tree": True} if pid else {"x_disable_stats": True}
    )
    return wandb.Settings(
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        disable_job_creation=True,
        program="sweeps.worker",
        x_save_requirements=False,
        # With this file W&B loses rows in the middle of a run, for good, when the disk is full. Without it nothing is
        # lost that the store cannot send again.
        x_skip_transaction_log=config.mode == "online",
        x_file_stream_transmit_interval=1.0,
        x_transaction_log_flush_interval=1.0,
        x_stats_sampling_interval=config.system_seconds,
        init_timeout=config.timeout,
        **_RETRY_SETTINGS,
        **system,
    )


def redacted(error: BaseException) -> str:
    """An error in one line of at most 1,000 characters, without keys."""
    return redact(" ".join(f"{type(error).__name__}: {error}".split()))[:1000]
