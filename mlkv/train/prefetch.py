"""On a GPU a process of its own makes the next batches while one computes. Their order and content stay.

On a CPU it would take time from the threads that compute: making a batch is less than a thousandth of a step there.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

PREFETCH: dict[str, Any] = {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2}
"""For TrainingArguments. A run is one epoch to Trainer, so the process need not outlast any."""


def obey_parent_alone(_worker: int) -> None:
    """Called in the process that makes batches. A queue sends its signals to all processes of a job; this one works on
    until the training has saved its state, and ends when that, its parent, ends it."""
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _end_for(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
