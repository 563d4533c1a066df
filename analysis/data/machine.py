"""On which machine a measurement was made: speeds of different ones are not compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.data.frame import Row

UNKNOWN = "not recorded"
_JOIN = ", "
_LIBRARIES = ("torch", "transformers", "python")
"""Whose versions a speed depends on."""


def machine_of(record: Mapping[str, Any]) -> str | None:
    """`node-1, NVIDIA H100, torch 2.13.0, …`: host, GPU or processor, and versions, as far as a record has them."""
    facts, versions = record.get("facts") or {}, record.get("versions") or {}
    device = facts.get("processor") or facts.get("device") or record.get("device")
    told = [record.get("host"), device, *(f"{name} {versions[name]}" for name in _LIBRARIES if versions.get(name))]
    return _JOIN.join(map(str, filter(None, told))) or None


def marks(rows: Iterable[Row]) -> dict[str | None, str]:
    """A letter for each machine that rows were measured on, in the order of the rows; empty where it is one."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    return {} if len(machines) < 2 else {machine: _letters(i) for i, machine in enumerate(machines)}


def key(found: Mapping[str | None, str]) -> list[str]:
    """What the letters stand for, as far as the machines differ: `a: node-1, NVIDIA H100`."""
    parts = {machine: (machine or UNKNOWN).split(_JOIN) for machine in found}
    shared = set.intersection(*map(set, parts.values())) if parts else set()
    told = {machine: [part for part in each if part not in shared] for machine, each in parts.items()}
    return [f"{letter}: {_JOIN.join(told[machine]) or machine}" for machine, letter in found.items()]


def _letters(i: int) -> str:
    """a … z, aa, ab …"""
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)
