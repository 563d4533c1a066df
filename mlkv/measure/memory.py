"""How far memory grows at its highest: on CUDA by the allocator's account, on a CPU by the process's resident size.

A resident size counts whole pages and is coarser; where the system does not report it there is no number.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..freed import return_freed_memory


class Peak:
    """What memory grew by since this was made, at most, in each of the phases that follow."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.before: int | None = torch.cuda.memory_allocated()
        else:
            return_free_memory()
            self.before = _resident("VmRSS")
        self.known = self.begin()

    def begin(self) -> bool:
        """Begin a phase; False where the system cannot."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return True
        return _reset_peak()

    def grown(self) -> float | None:
        """At its highest in this phase, over what there was when this was made; in bytes."""
        if self.before is None or not self.known:
            return None
        peak = torch.cuda.max_memory_allocated() if self.cuda else _resident("VmHWM")
        return float(max(0, (peak or 0) - self.before))


def return_free_memory() -> None:
    """Return to the system the memory that earlier work freed, as far as the C library can: else the peak would not
    count what a cell uses of it."""
    gc.collect()
    return_freed_memory()


@contextmanager
def collecting_new_garbage() -> Iterator[None]:
    """Garbage is looked for among what was made since: a run collects it before it begins, and the modules of three
    large libraries take a tenth of a second each time."""
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _reset_peak() -> bool:
    """Reset Linux's peak of this process's resident size; False where that is impossible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 if sizes else None
