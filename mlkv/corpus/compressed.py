"""Files that may be compressed, as one stream of bytes. A file that is cut off is an error, never a shorter text."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import IO, Any, cast

SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
_CHUNK = 1 << 17


def open_bytes(path: Path) -> IO[bytes]:
    """The content of `path`, decompressed as its suffix says. Reading raises EOFError where the file is cut off, and
    the errors of its format where it is damaged."""
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path))
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return io.BufferedReader(_Zstandard(path.open("rb")), _CHUNK)
        case _:
            return path.open("rb")


class _Zstandard(io.RawIOBase):
    """Frames of Zstandard, one after another. zstandard's own stream reader takes a file that is cut off for one that
    ends there (python-zstandard 0.25)."""

    def __init__(self, file: IO[bytes]) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None
        """The frame that is being read; None between frames."""
        self._compressed = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._fill():
            pass
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _fill(self) -> bool:
        """Decompress some more; false at the end of the file."""
        self._compressed = self._compressed or self._file.read(_CHUNK)
        if not self._compressed:
            if self._frame is not None:
                raise EOFError("the compressed file ends before its end marker")
            return False
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        self._ready = self._frame.decompress(self._compressed)
        self._compressed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
