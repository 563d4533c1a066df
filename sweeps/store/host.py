"""Which machine this is."""

from __future__ import annotations

import os
import socket


def host() -> str:
    """This node's name, as the queue has it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
