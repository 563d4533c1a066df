"""Errors that come from the machine or the file system, not from the step itself. The next attempt may not meet them.

A step that ends with such an error is interrupted, not failed: the same command line runs it again.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

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
    """`ENOSPC: No space left on device: /path`."""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return ": ".join(str(part) for part in (name, error.strerror or error, error.filename) if part)


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
