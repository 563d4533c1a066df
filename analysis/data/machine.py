"""The machine of a measurement: speeds of different machines are not compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sweeps.store.schema import Origin, Record

Machine = str | None
"""As `machine_of` writes it; None where it was not recorded."""
UNKNOWN = "not recorded"
_JOIN = ", "
_LIBRARIES = ("torch", "transformers", "python")
"""Libraries whose versions change a speed."""


def machine_of(record: Record, origin: Origin | None = None) -> Machine:
    """`node-1, NVIDIA H100, torch 2.13.0, …`: host, GPU or processor, and versions, as far as a record has them.

    A result that was unpacked has its `origin` too: machines of two people can have one name."""
    device = record.facts.get("processor") or record.facts.get("device") or record.device
    versions = [f"{name} {record.versions[name]}" for name in _LIBRARIES if record.versions.get(name)]
    whose = origin.words if origin else None
    return _JOIN.join(map(str, filter(None, [record.host, device, *versions, whose]))) or None


def marks(measured_on: Iterable[Machine]) -> dict[Machine, str]:
    """A letter for each of the machines, in their order; empty where all measurements were made on one."""
    machines = list(dict.fromkeys(measured_on))
    return {} if len(machines) < 2 else {machine: _letters(i) for i, machine in enumerate(machines)}


def key(letters: Mapping[Machine, str]) -> list[str]:
    """The meaning of the letters, as far as the machines differ: `a: node-1, NVIDIA H100`."""
    parts = {machine: (machine or UNKNOWN).split(_JOIN) for machine in letters}
    shared = set.intersection(*map(set, parts.values())) if parts else set()
    own = {machine: [part for part in each if part not in shared] for machine, each in parts.items()}
    return [f"{letter}: {_JOIN.join(own[machine]) or machine}" for machine, letter in letters.items()]


def _letters(i: int) -> str:
    """a … z, aa, ab …"""
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("a") + i % 26)
