"""Runs steps in order: `python -m sweeps.worker STORE STEP…`, the one path for this machine and for SLURM.

A supervisor, light and hard to kill, around a child that computes (sweeps.child). It claims a step, keeps the claim
alive, passes on signals, and alone writes records. Exit status: 0 all done, 1 a step failed, 3 blocked, 4 interrupted.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import psutil

from sweeps.files import utc_now
from sweeps.store import Claim, Store
from sweeps.tracking.supervisor import Mirror

DONE, FAILED, BLOCKED, INTERRUPTED = 0, 1, 3, 4
BEAT_SECONDS = 1.0
GRACE_SECONDS = 60.0
"""How long a child may take to save its state once it was asked to stop."""
_LIBRARIES = ("torch", "transformers", "lm_eval", "datasets", "numpy")


class Child:
    """The computing process. Started at the first step that is not done, so that a hit costs nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def ask(self, step: str, attempt: int) -> None:
        if self._process is None or self._process.poll() is not None:
            self._start()
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"step": step, "attempt": attempt}) + "\n")
        self._process.stdin.flush()

    def _start(self) -> None:
        ours, theirs = os.pipe()
        command = [sys.executable, "-m", "sweeps.child", str(self._store.root), str(theirs)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, pass_fds=[theirs])
        os.close(theirs)
        self._answers = queue.Queue()
        threading.Thread(target=_read, args=(os.fdopen(ours), self._answers), daemon=True).start()

    def answer(self, timeout: float) -> dict[str, Any] | None:
        """The child's word on the step it was asked to run; None while it is at it; `vanished` once it is gone."""
        assert self._process
        try:
            line = self._answers.get(timeout=timeout)
        except queue.Empty:
            return None
        if line:
            return json.loads(line)
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return {"state": "vanished", "reason": f"its process was {how}", "returncode": code}

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def resident_bytes(self) -> int:
        try:
            return psutil.Process(self._process.pid).memory_info().rss if self._process else 0
        except psutil.NoSuchProcess:
            return 0

    def stop(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()


def _read(answers: IO[str], into: queue.Queue[str]) -> None:
    """Every line, then an empty one at the end of file."""
    with answers:
        for line in answers:
            into.put(line)
    into.put("")


class Worker:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._child = Child(store)
        self._mirror = Mirror(store)
        self._stopping_since: float | None = None

    def run(self, steps: Sequence[str]) -> int:
        """Run what is not done; go on past failures to steps that do not depend on them."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
            signal.signal(number, self._on_stop)
        worst = DONE
        for step in steps:
            status = INTERRUPTED if self._stopping_since else self._step(step)
            worst = status if worst in (DONE, BLOCKED) and status != DONE else worst
            print(f"{utc_now()} {step} {_WORDS[status]}", flush=True)
        self._child.close()
        self._mirror.close()
        return worst

    def _on_stop(self, number: int, frame: Any) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
        self._child.stop()

    def _step(self, step_id: str) -> int:
        step = self._store.step(step_id)
        while not step.record():
            if self._stopping_since:
                return INTERRUPTED
            if not self._inputs_are_sound(step_id):
                return BLOCKED
            if claim := step.claim():
                try:
                    return self._attempt(claim)
                finally:
                    claim.release()
            time.sleep(BEAT_SECONDS)  # another worker is at it
        return DONE

    def _inputs_are_sound(self, step_id: str) -> bool:
        """Every parent done, with the bytes its record names. A parent that is not is set aside to be run again."""
        spec = self._store.step(step_id).spec()
        if spec is None:
            print(f"{step_id}: no such step in {self._store.root}", file=sys.stderr)
            return False
        for parent in map(self._store.step, spec["parents"].values()):
            if parent.record() is None:
                print(f"{step_id}: waits for {parent.id}, which is not done", file=sys.stderr)
                return False
            if wrong := parent.corrupted():
                parent.set_aside(wrong)
                print(f"{step_id}: input {parent.id} is corrupt ({wrong}); set aside to be run again", file=sys.stderr)
                return False
        return True

    def _attempt(self, claim: Claim) -> int:
        attempt, started, clock = claim.attempt, utc_now(), time.monotonic()
        attempt.write_environment(_environment())
        self._child.ask(claim.step.id, attempt.number)
        self._mirror.began(claim, self._child.pid)
        answer, peak = self._watch(claim)
        state = answer["state"]
        if state == "vanished":
            killed = answer["returncode"] in (-signal.SIGKILL, -signal.SIGTERM)
            state = "interrupted" if killed or self._stopping_since else "failed"
        if state == "done":
            wall = time.monotonic() - clock
            claim.step.publish(claim, self._record(claim, answer, started, wall, peak))
        attempt.finish(state, answer.get("reason", ""), answer.get("returncode"))
        self._mirror.ended(claim)
        return {"done": DONE, "failed": FAILED, "interrupted": INTERRUPTED}[state]

    def _watch(self, claim: Claim) -> tuple[dict[str, Any], int]:
        """The child's answer and the most memory it was seen to hold, in bytes; beats while waiting."""
        peak = 0
        while True:
            claim.attempt.beat()
            peak = max(peak, self._child.resident_bytes())
            if answer := self._child.answer(timeout=BEAT_SECONDS):
                return answer, peak
            if self._stopping_since and time.monotonic() - self._stopping_since > GRACE_SECONDS:
                self._child.kill()

    def _record(self, claim: Claim, answer: dict[str, Any], started: str, wall: float, peak: int) -> dict[str, Any]:
        spec = claim.step.spec() or {}
        parents = [self._store.step(parent).record() or {} for parent in spec["parents"].values()]
        devices = max(1, len(_visible_gpus()))
        return {
            "started": started,
            "finished": utc_now(),
            "wall_seconds": round(wall, 3),
            "device_seconds": round(wall * devices, 3),
            "peak_memory_bytes": peak,
            **_environment(),
            "code": self._store.code_hash,
            "work": claim.step.how().get("work"),
            "inputs": {parent["id"]: parent["outputs"] for parent in parents},
            "metrics": answer["metrics"],
            "facts": answer["facts"],
        }


_WORDS = {DONE: "done", FAILED: "failed", BLOCKED: "blocked", INTERRUPTED: "interrupted"}


def _visible_gpus() -> list[str]:
    return [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]


def _environment() -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    return {
        "host": socket.gethostname(),
        "device": f"cuda:{','.join(gpus)}" if (gpus := _visible_gpus()) else platform.machine(),
        "versions": versions,
    }


def main() -> None:
    sys.exit(Worker(Store(Path(sys.argv[1]))).run(sys.argv[2:]))


if __name__ == "__main__":
    main()
