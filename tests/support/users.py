"""What other users than root do, who runs the tests."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable


def as_user(user: int, group: int, do: Callable[[], object], umask: int = 0o022) -> object:
    """What `do` returns, as JSON, or its traceback, in a forked process of another user with one group. That one need
    not be able to start our interpreter or to read our files."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            os.umask(umask)
            result = json.dumps(do())
        except BaseException:
            result = json.dumps(traceback.format_exc())
        os.write(theirs, result.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text)
