"""The container of a pack: a zip file with a manifest, written so that equal content gives equal bytes, and read so
that nothing in it is believed before it is checked.

What a reader of archives has to fear, and what is done about it (https://snyk.io/research/zip-slip-vulnerability,
https://www.bamsoftware.com/hacks/zipbomb/): members are written by names that this module builds a path from, part by
part, never by `extract`; only regular files; each name once, also where upper and lower case are one; not more bytes
than the manifest says, and the manifest may not say more than a multiple of the file's own size.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

from mlkv.files import discard
from sweeps.sharing.manifest import MANIFEST, Manifest
from sweeps.store.errors import UserError
from sweeps.store.schema import FileHash, Files

MAX_RATIO, ALWAYS_ALLOWED = 100, 256 * 2**20
"""A pack may hold that many times its own size, or that many bytes, whichever is more."""
MAX_MANIFEST = 64 * 2**20
MAX_NAME, MAX_PART = 1000, 200
"""Bytes of a member's name, and of what stands between two slashes."""
_STORED = (".safetensors", ".bin", ".pt")
"""Weights hardly get smaller, and take long to compress."""
_BLOCK = 2**20
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)
"""What zipfile raises for a file that is no zip file, or that is damaged or encrypted."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")


class PackError(UserError):
    """A file that is no pack, or one that is damaged, newer than this code, or that wants too much."""


@dataclass(frozen=True)
class Member:
    """A file to be packed: its content, or where it lies and what it must hold."""

    hash: FileHash
    content: bytes | Path

    @classmethod
    def of(cls, content: bytes) -> Member:
        return cls(FileHash(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)), content)

    def open(self) -> IO[bytes]:
        return self.content.open("rb") if isinstance(self.content, Path) else BytesIO(self.content)


def write(path: Path, manifest: bytes, members: Mapping[str, Member]) -> None:
    """Write a pack, which replaces an older one whole. Raises PackError for a file that is not what it must hold, and
    OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with temporary.open("xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                _add(archive, MANIFEST, Member.of(manifest))
                for name in sorted(members):
                    _add(archive, name, members[name])
            file.flush()
            os.fsync(file.fileno())
        with opened(temporary):
            pass  # what was written is refused here rather than by whoever it is for
        os.replace(temporary, path)
    finally:
        discard(temporary)


def _add(archive: zipfile.ZipFile, name: str, member: Member) -> None:
    check_name(name)
    info = zipfile.ZipInfo(name)  # of 1980-01-01: equal content gives equal bytes
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(_STORED) else zipfile.ZIP_DEFLATED
    with member.open() as source, archive.open(info, "w", force_zip64=member.hash.bytes >= 2**31) as target:
        found = _copy(source, target)
    if found != member.hash:
        raise PackError(f"{name}: is not as its record says; `mlkv status --verify` sets such steps aside")


def _copy(source: IO[bytes], target: IO[bytes], limit: int | None = None) -> FileHash:
    """Copy to the end, or until there is more than `limit`."""
    digest, count = hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        digest.update(block)
        count += len(block)
        if limit is not None and count > limit:
            break
        target.write(block)
    return FileHash(sha256=digest.hexdigest(), bytes=count)


@dataclass(frozen=True)
class Pack:
    """A pack that is open, with what its manifest says of it."""

    path: Path
    archive: zipfile.ZipFile
    manifest: Manifest
    digest: str
    """The SHA-256 of the manifest, which has that of each file."""

    def read(self, name: str) -> bytes:
        """The content of a member. Raises PackError where it is not what the manifest says."""
        target = BytesIO()
        self._copy(name, target)
        return target.getvalue()

    def extract(self, name: str, target: Path) -> None:
        """Write a member to a new file. Raises PackError as `read` does, and OSError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            self._copy(name, file)
            file.flush()
            os.fsync(file.fileno())

    def _copy(self, name: str, target: IO[bytes]) -> None:
        expected = self.manifest.files[name]
        with _damage(self.path), self.archive.open(name) as source:
            found = _copy(source, target, expected.bytes)
        if found != expected:
            raise PackError(f"{self.path}: {name} does not have the content that its manifest says")


@contextmanager
def opened(path: Path) -> Iterator[Pack]:
    """A pack whose members are those of its manifest, and no others. Raises PackError, and OSError for a file that
    cannot be read."""
    if not path.is_file():
        raise PackError(f"{path}: {'is no file' if path.exists() else 'no such file'}")
    with _damage(path):
        archive = zipfile.ZipFile(path)
    with archive:
        names = [info.filename for info in archive.infolist()]
        if MANIFEST not in names:
            raise PackError(f"{path}: is no pack of mlkv: it has no {MANIFEST}")
        content = _manifest_of(path, archive)
        with _named(path):
            manifest = Manifest.read(content)
            _check_members(archive.infolist(), manifest.files)
            _check_size(manifest.files, path.stat().st_size)
        yield Pack(path, archive, manifest, hashlib.sha256(content).hexdigest())


def _manifest_of(path: Path, archive: zipfile.ZipFile) -> bytes:
    target = BytesIO()
    with _damage(path), archive.open(MANIFEST) as source:
        found = _copy(source, target, MAX_MANIFEST)
    if found.bytes > MAX_MANIFEST:
        raise PackError(f"{path}: its {MANIFEST} has more than {MAX_MANIFEST // 2**20} MiB")
    return target.getvalue()


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise PackError(f"{path}: is no pack of mlkv, or is damaged ({error or type(error).__name__})") from None


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise PackError(f"{path}: {error}") from None


def _check_members(infos: list[zipfile.ZipInfo], files: Files) -> None:
    """Raises ValueError unless the members are regular files with the names in the manifest, each once."""
    seen: dict[str, str] = {}
    for info in infos:
        name = info.orig_filename  # as it stands in the file: zipfile cuts a name at its first zero byte
        check_name(name)
        if other := seen.get(key := _same_place(name)):
            raise ValueError(
                f"{name}: is in it twice" if other == name else f"{name}: some systems take it for {other}"
            )
        seen[key] = name
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind not in (0, stat.S_IFREG) or info.external_attr & _DOS_SPECIAL:
            raise ValueError(f"{name}: is no regular file")
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name}: is encrypted, or compressed in another way than deflate")
        if name != MANIFEST and (name not in files or files[name].bytes != info.file_size):
            raise ValueError(f"{name}: is not as {MANIFEST} says")
    if lacking := files.keys() - seen.values():
        raise ValueError(f"{min(lacking)}: is in {MANIFEST} and not in the file")
    for name in seen:
        if folder := next((each for each in _folders(name) if each in seen), None):
            raise ValueError(f"{seen[folder]}: is a file and a folder")


_DOS_SPECIAL = 0x08 | 0x10 | 0x40
"""Volume label, directory, device."""


def _same_place(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _folders(name: str) -> Iterator[str]:
    parts = name.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def check_name(name: str) -> None:
    """Raises ValueError for a name that is not relative, or leads elsewhere, or is spelled in an odd way."""
    parts = name.split("/")
    if _CONTROL.search(name) or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name[:80]!a}: is no name of a file in a pack")
    if any(part != part.strip() or part.endswith(".") for part in parts) or ":" in name:
        raise ValueError(f"{name[:80]!a}: some systems take it for another name")
    if len(name.encode()) > MAX_NAME or any(len(part.encode()) > MAX_PART for part in parts):
        raise ValueError(f"{name[:80]!a}…: is too long")


def _check_size(files: Files, packed: int) -> None:
    total, most = sum(each.bytes for each in files.values()), max(ALWAYS_ALLOWED, MAX_RATIO * packed)
    if total > most:
        raise ValueError(f"would take {total} bytes, more than {MAX_RATIO} times its size; the most is {most}")
