"""The processor that a step computes on: which one, its precision, its memory, and errors of memory that ran out."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from .context import StepFailed
from .shape import check_choice

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is faster than fp32 on this processor. Its instruction set decides, never a timing: two runs must
    get the same answer.

    Intel's avx512_bf16 without AMX multiplies at half the rate of its fp32 units (80 against 150 GFLOP/s measured on a
    core); AMX, and avx512_bf16 on AMD, are faster than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    intel = cpuinfo.is_file() and "GenuineIntel" in cpuinfo.read_text()
    return torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not intel)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`fp32` or `bf16` for a recipe's precision; `auto` is bf16 where the processor computes in it. Raises ValueError
    for any other."""
    check_choice("precision", precision, ("auto", "fp32", "bf16"))
    if precision == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return precision


def require_device(name: str) -> torch.device:
    """Raises StepFailed for `cuda` on a machine without it, ValueError for what is neither `cpu` nor `cuda`."""
    check_choice("device", name, ("cpu", "cuda"))
    if name == "cuda" and not torch.cuda.is_available():
        raise StepFailed("device = cuda: this machine has no CUDA device; choose cpu, or a cluster profile with GPUs")
    return torch.device(name)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory ran out: on a GPU, or in the CPU allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # A compiler wraps what a graph's first run raised.
    words = ("not enough memory", "allocate memory", "CUDA out of memory", "CUDA error: out of memory")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)


def available_memory() -> int:
    """Bytes of CPU memory that a new allocation can still use: the machine's, or the control group's where that is
    less: in a container or a SLURM job the kernel kills a process long before the machine's memory is used up."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup") / _cgroup().lstrip("/")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except OSError:
        return free
    return free if limit == "max" else min(free, int(limit) - used)


def _cgroup() -> str:
    path = Path("/proc/self/cgroup")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")
