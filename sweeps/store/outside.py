"""Errors that come from the machine or the file system, not from the step itself. The next attempt may not meet them.

A step that ends with such an error is interrupted, not failed: the same command line runs it again.
"""

from __future__ import annotations

import errno
import os
import pwd
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from sweeps.store.errors import UserError

OUTSIDE_ERRNOS = frozenset(
    {
        # Full, or over its quota.
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        # A disk or a file server fails, disappears, is replaced, or refuses access.
        errno.EIO,
        errno.EREMOTEIO,
        errno.ESTALE,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENODEV,
        errno.ENXIO,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.ESHUTDOWN,
        errno.EHOSTDOWN,
        errno.ECONNABORTED,
        errno.EUCLEAN,
        errno.EBADMSG,
        # Two places in one folder are now on different disks, or under different quotas.
        errno.EXDEV,
        # Other processes use the same files.
        errno.EBUSY,
        errno.ETXTBSY,
        errno.ENOTEMPTY,
        errno.ENOLCK,
        errno.EAGAIN,
        errno.EINTR,
        # No more open files.
        errno.EMFILE,
        errno.ENFILE,
    }
)

# Some libraries write files without Python and report the error as text only: safetensors and tokenizers (Rust),
# torch.save, numpy's tofile.
_NUMBER_IN_WORDS = re.compile(r"\(os error (\d+)\)")
_WRITE_FAILED = re.compile(r"iostream error|file write failed|unexpected pos \d+ vs \d+|\d+ requested and \d+ written")


def outside_cause(error: BaseException) -> str | None:
    """The outside cause in one line, where this error, or one that led to it, came from outside the step; else None."""
    cause = next((cause for each in _chain(error) if (cause := _cause(each))), None)
    words = "" if isinstance(error, OSError) else str(error)
    return f"{words}: {cause}" if cause and words not in cause else cause


def describe_error(error: OSError) -> str:
    """`ENOSPC: No space left on device: /path`; of a permission also whose file stands in the way, and what to do."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    words = ": ".join(str(part) for part in (name, error.strerror or error, error.filename) if part)
    return f"{words}{permission_advice(error)}"


def in_one_line(error: BaseException) -> str:
    """Any error; with its type, unless its message is written for users."""
    if isinstance(error, OSError):
        return " ".join(describe_error(error).split())
    text = " ".join(str(error).split())[:2000]
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def plain_reason(error: OSError) -> str:
    """The same without the error's code and path, where the sentence around it names the place."""
    return f"{error.strerror}{permission_advice(error)}"


def permission_advice(error: OSError) -> str:
    """Whose file or folder refused it, with which permissions, and what opens it, to go on with a reason that may stand
    in parentheses; empty for any other error."""
    if error.errno not in (errno.EACCES, errno.EPERM) or not isinstance(error.filename, str):
        return ""
    for path in (Path(error.filename), *Path(error.filename).parents):
        try:
            found = path.lstat()
        except OSError:  # it is not there, or a folder above is closed, which stands in the way then
            continue
        if path.is_dir() or not os.access(path, os.R_OK):
            return f"; {path} is {_owner(found.st_uid)}'s, {stat.filemode(found.st_mode)}; {_remedy(path, found)}"
    return ""


def _remedy(path: Path, found: os.stat_result) -> str:
    if found.st_uid == os.getuid():
        return f"`chmod u+rwX {path}`"
    return "to share a store, its owner runs `chmod -R g+rwX` on it, and all who write use `umask 002`"


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that a traceback of it would show, latest first."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _cause(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in OUTSIDE_ERRNOS:
        return describe_error(error)
    words = " ".join(str(error).split())
    number = _NUMBER_IN_WORDS.search(words)
    if number and int(number[1]) in OUTSIDE_ERRNOS:
        return f"{errno.errorcode[int(number[1])]}: {words}"
    return f"a file could not be written: {words}" if _WRITE_FAILED.search(words) else None
