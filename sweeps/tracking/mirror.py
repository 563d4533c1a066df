"""Writes runs to W&B, in a process that mirrors and does nothing else.

Nothing has to remember what has arrived. Online the server is asked when a run is taken up again, and rows it has are
left out; offline, where W&B ignores `resume`, every fragment holds the run from its first row.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import wandb
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from sweeps.store.axis import Json
from sweeps.store.store import TrackingDir
from sweeps.tracking.runs import MARK, Run
from sweeps.tracking.target import TrackingConfig

_QUERIES: dict[str, Any] = {"x_graphql_retry_max": 4, "x_graphql_retry_wait_max_seconds": 5.0}
"""Give up soon: what does not arrive now is sent by the next attempt or `mlkv sync`."""
_GOES_ON = ("INTERRUPTED", "RUNNING", "PENDING")
"""W&B calls these runs preempted, others that are not done failed."""


class MirrorError(Exception):
    """W&B could not be written to; the message holds no key."""


class ServiceEndedError(MirrorError):
    """The process through which wandb writes is gone; `restart_service` begins another."""


class OpenRun:
    """A run that is being written. Raises MirrorError when W&B fails."""

    def __init__(self, run: Run, config: TrackingConfig, directory: TrackingDir, pid: int | None = None) -> None:
        """`pid`: the process whose CPU, memory and GPU are to be shown; None for no system metrics."""
        _make(directory)
        try:
            self._run = wandb.init(
                mode="online" if config.mode == "online" else "offline",
                project=config.project,
                entity=config.entity,
                dir=str(directory.parent),
                id=run.id,
                name=run.name,
                group=run.group,
                job_type=run.job_type,
                tags=list(run.tags),
                resume="allow" if config.mode == "online" else None,
                reinit="create_new",
                settings=_settings(config, pid),
            )
            self._describe(run)
        except Exception as error:  # whatever W&B raises, the step goes on
            raise _told(error) from None
        self._next = self._run.starting_step

    @property
    def folder(self) -> str:
        """The name of its own folder among W&B's files."""
        return Path(self._run.settings.sync_dir).name

    def _describe(self, run: Run) -> None:
        self._run.config.update(run.config, allow_val_change=True)
        self._run.summary.update({"state": run.state})
        for prefix, axis in run.axes.items():
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{prefix}/*", step_metric=axis)

    def log(self, rows: Iterable[tuple[int, Json]]) -> None:
        """Rows by position; those the server has already are left out."""
        try:
            for position, values in rows:
                if position >= self._next:
                    self._run.log(values, step=position, commit=True)
                    self._next = position + 1
        except Exception as error:
            raise _told(error) from None

    def finish(self, run: Run) -> None:
        """Write the summary and wait until W&B has everything, or has given up."""
        self.log(run.rows)
        try:
            whole = {MARK: run.fingerprint} if run.settled else {}
            self._run.summary.update({**run.summary, **whole})
            if run.state in _GOES_ON:
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if run.state == "DONE" else 1)
        except Exception as error:
            raise _told(error) from None


def connect_briefly() -> None:
    """For a command that somebody waits for: rows too are given up after a minute without a server."""
    queries: dict[str, Any] = {"x_graphql_retry_max": 3, "x_graphql_retry_wait_max_seconds": 2.0}
    rows: dict[str, Any] = {"x_file_stream_retry_max": 10, "x_file_stream_retry_wait_max_seconds": 5.0}
    wandb.setup(wandb.Settings(**queries, **rows))


def write(run: Run, config: TrackingConfig, directory: TrackingDir) -> None:
    """A whole run at once; offline, in place of what was written of it before."""
    opened = OpenRun(run, config, directory)
    opened.finish(run)
    if config.mode == "offline":
        directory.drop_before(opened.folder, run.id)
        if run.settled:
            directory.mark_written(run.id, run.fingerprint)


def restart_service() -> None:
    """Nothing is waited for: what the old one had not sent is written again."""
    with suppress(Exception, SystemExit):
        wandb.teardown(exit_code=1)
    os.environ.pop("WANDB_SERVICE", None)


def _told(error: Exception) -> MirrorError:
    ended = isinstance(error, ConnectionError | MailboxClosedError | HandleAbandonedError)
    return (ServiceEndedError if ended else MirrorError)(redacted(error))


def _make(directory: TrackingDir) -> None:
    """W&B falls back to /tmp without a word where its directory cannot be made."""
    try:
        directory.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MirrorError(f"{directory.runs}: {error.strerror}") from None


def _settings(config: TrackingConfig, pid: int | None) -> wandb.Settings:
    watched: dict[str, Any] = (
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
        # On a full disk W&B would lose rows in the middle, for good; what is missing is sent from the store.
        x_skip_transaction_log=config.mode == "online",
        x_file_stream_transmit_interval=1.0,
        x_transaction_log_flush_interval=1.0,
        x_stats_sampling_interval=config.system_seconds,
        init_timeout=config.timeout,
        **_QUERIES,
        **watched,
    )


def redacted(error: BaseException) -> str:
    """An error in one line, without the key."""
    text = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
    key = os.environ.get("WANDB_API_KEY")
    return text.replace(key, "***") if key else text
