"""The files of a checkpoint directory: those that transformers loads, and what is in them by their headers.

Plans use it, so torch is imported only for pytorch_model.bin, whose header is a pickle that torch alone reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import Json

if TYPE_CHECKING:
    from torch import Tensor

POINTER = b"version https://git-lfs.github.com/spec/"
WHOLE = ("model.safetensors", "pytorch_model.bin")
"""In the order of transformers' choice; each may be cut into shards that an index lists."""
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""torch's names of safetensors' dtypes."""
_COMPARED_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class WeightInfo:
    """What a header says of one weight; `dtype` is torch's name. file, start, end: where its bytes are, if known."""

    shape: tuple[int, ...]
    dtype: str
    file: Path | None = None
    start: int = 0
    end: int = 0

    @classmethod
    def of(cls, tensor: Tensor) -> WeightInfo:
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def read_json_object(path: Path) -> Json:
    """A JSON object as transformers reads one: UTF-8 without a byte order mark. Raises ValueError naming the file."""
    check_present(path)
    content = path.read_bytes()
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} begins with a byte order mark: save it as UTF-8 without one")
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read: not JSON ({reason}); copy or write it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not JSON object: it holds a {type(value).__name__}")
    return value


def check_present(path: Path) -> None:
    """Raises ValueError where a file is missing, cannot be read, or is what git-lfs leaves in its place."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except FileNotFoundError:
        fault = f"links to {path.readlink()}, which is missing" if path.is_symlink() else "is missing"
        raise ValueError(f"{path} {fault}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if start == POINTER:
        raise ValueError(f"{path} is a git-lfs pointer in place of the file: run `git lfs pull` in {path.parent}")


def weight_files(source: Path) -> list[Path]:
    """Of several forms the one that transformers loads. Raises ValueError where a file is missing, or none has
    weights."""
    for name in WHOLE:
        if (source / name).is_symlink() or (source / name).is_file():
            check_present(source / name)
            return [source / name]
        index = source / f"{name}.index.json"
        if index.is_symlink() or index.is_file():
            return list(_shards(index))
    others = sorted(p.name for p in source.glob("*") if p.suffix in (".safetensors", ".bin", ".gguf", ".pt", ".pth"))
    below = sorted(str(p.parent.relative_to(source)) for name in WHOLE for p in source.glob(f"*/{name}*"))
    hint = f"; it has {', '.join(others[:3])}" if others else f"; they are in {below[0]}/" if below else ""
    raise ValueError(f"{source} has no weights: needs model.safetensors or pytorch_model.bin, whole or sharded{hint}")


def _shards(index: Path) -> Iterator[Path]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(n, str) for n in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from weights to files: copy it again")
    for name in sorted(set(weight_map.values())):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{index} lists {name}: must be a file in its directory")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index.parent / name} is missing, and {index.name} lists it: copy it there")
        check_present(index.parent / name)
        yield index.parent / name


def read_headers(paths: list[Path]) -> dict[str, WeightInfo]:
    """What weights files hold, by name. Raises ValueError that names a file which is not whole."""
    found: dict[str, WeightInfo] = {}
    for path in paths:
        found |= _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    return found


def _safetensors(path: Path) -> dict[str, WeightInfo]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):  # compares the header with the size of the file
            pass
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        size = f"{path.stat().st_size:,} bytes"
        raise ValueError(f"{path} is not a whole safetensors file ({size}; {reason}): copy it again") from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: WeightInfo(
            tuple(entry["shape"]),
            DTYPES.get(entry["dtype"], entry["dtype"]),
            path,
            *(8 + length + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _pickled(path: Path) -> dict[str, WeightInfo]:
    return {name: WeightInfo.of(tensor) for name, tensor in load_pickled(path, map_location="meta").items()}


def load_pickled(path: Path, map_location: str = "cpu") -> dict[str, Tensor]:
    """The weights in a file of torch.save. Raises ValueError where it is damaged or holds anything else."""
    import torch

    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # torch raises many kinds, and pickle any
        reason = (str(error).splitlines() or [type(error).__name__])[0][:150]
        raise ValueError(f"{path} is not a whole file of weights ({reason}): copy it again") from None
    if not isinstance(state, dict) or not all(isinstance(weight, torch.Tensor) for weight in state.values()):
        raise ValueError(f"{path} holds something else than named weights: save the model's state_dict")
    return {str(name): weight for name, weight in state.items()}


def differ(one: WeightInfo, other: WeightInfo) -> bool:
    """Whether two weights of one dtype have different bytes; false where their place is unknown."""
    if one.file is None or other.file is None or one.dtype != other.dtype:
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.end - one.start
        while left > 0:
            size = min(left, _COMPARED_AT_A_TIME)
            if first.read(size) != second.read(size):
                return True
            left -= size
    return False
