"""Processes to which the kernel gives no internet socket, so that what opens a connection cannot go unseen."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

_FILTER = """
import ctypes, os, struct, sys
def rule(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
load, equal, give = 0x20, 0x15, 0x06
program = b"".join([
    rule(load, 0, 0, 0), rule(equal, 0, 4, 41),                      # socket(
    rule(load, 0, 0, 16), rule(equal, 1, 0, 2), rule(equal, 0, 1, 10),  # AF_INET or AF_INET6)
    rule(give, 0, 0, 0x0005000D), rule(give, 0, 0, 0x7FFF0000),      # is answered EACCES; anything else is allowed
])
buffer = ctypes.create_string_buffer(program)
prog = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_char_p(prog)) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def without_internet() -> list[str]:
    """The beginning of a command: Python in a process that, like all its children, gets no internet socket. Skips where
    the filter does not work."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or ctypes.sizeof(ctypes.c_void_p) != 8:
        pytest.skip("the filter is written for Linux on x86-64")
    tries = [sys.executable, "-c", _FILTER, "-c", "import socket; socket.socket()"]
    assert b"PermissionError" in subprocess.run(tries, capture_output=True).stderr, "the filter does not filter"
    return [sys.executable, "-c", _FILTER]
