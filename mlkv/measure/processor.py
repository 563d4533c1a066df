"""The processor that is measured: its name, its cache, and how fast it copies memory."""

from __future__ import annotations

import platform
import re
import time
from pathlib import Path

import torch

_SMALLEST, _LARGEST = 64 * 2**20, 512 * 2**20
_ON_CUDA = 2**30
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def processor() -> str:
    """The model of this machine's processor, as far as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def cache_of_processor(device: torch.device) -> int | None:
    """Bytes of its last cache before memory; None where the system does not report it."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)) or None
    sizes = [_bytes_of(path.read_text()) for path in _CPU_CACHES.glob("index*/size")]
    return max(sizes, default=0) or None


def _bytes_of(text: str) -> int:
    """`32768K` as the kernel writes it; 0 for what is no size."""
    found = re.fullmatch(r"(\d+)([KM]?)\s*", text)
    return int(found[1]) * {"": 1, "K": 2**10, "M": 2**20}[found[2]] if found else 0


def copied_bytes(device: torch.device) -> int:
    """The size of what is copied: with its copy four times the processor's cache, so that memory is measured."""
    if device.type == "cuda":
        return min(_ON_CUDA, torch.cuda.mem_get_info()[0] // 8)
    return min(max(_SMALLEST, 2 * (cache_of_processor(device) or 0)), _LARGEST)


class CopyBandwidth:
    """Bytes a second that the device moves when it copies memory: what is read and what is written count."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._times = device, 5 if device.type == "cuda" else 1

    def measure(self) -> float:
        """Once, on memory that is freed again: it may not be missing where a cell needs all there is."""
        source = torch.ones(copied_bytes(self._device), dtype=torch.uint8, device=self._device)
        target = torch.empty_like(source)
        target.copy_(source)  # gives it its pages
        self._wait()
        started = time.perf_counter()
        for _ in range(self._times):
            target.copy_(source)
        self._wait()
        return self._times * 2 * source.numel() / (time.perf_counter() - started)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
