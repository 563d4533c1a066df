"""Options that a line chooses and its experiment overrules: Hydra sets an experiment's values after those of every
option, whoever chose it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sweeps.planning.compose import parse_overrides
from sweeps.planning.plain_config import Values, select
from sweeps.store.errors import shown

if TYPE_CHECKING:
    from sweeps.planning.compose import Composer

_OF_ALL = ("experiment", "scale")
"""Groups that set the values of others."""
_SHOWN = 4
"""Values that are named."""


def overruled(composer: Composer, lines: Sequence[str], typed: Sequence[str]) -> list[str]:
    """In one line for each such option: which of its values the experiment replaces. Raises UserError.

    lines: of a point, with what the experiment's own grid chooses. typed: by a person.
    """
    overrides = parse_overrides(lines)
    keys = [override.key_or_group for override in overrides]
    if "experiment" not in keys:
        return []
    chosen = {key: line for key, line in zip(keys, lines, strict=True) if key in composer.groups}
    own = {group: line for group, line in chosen.items() if group not in _OF_ALL}
    own_words = {override.key_or_group for override in parse_overrides(typed)}
    now, alone = composer.plain([*chosen.values()]), composer.plain([*own.values()])
    found = []
    for group, line in own.items():
        if group not in own_words:
            continue
        without = composer.plain([each for each in own.values() if each != line])
        lost = [
            f"{key} = {shown(select(now, key))}"
            for key, wanted in _values(alone)
            if wanted not in (select(without, key), select(now, key)) and not _is_given(key, keys)
        ]
        if lost:
            more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
            values = ", ".join(lost[:_SHOWN]) + more
            found.append(f"{line}: the experiment sets {values}; to change that, give it on the line")
    return found


def _values(node: Values, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside mappings, each under its dotted key; lists are values."""
    for name, inner in node.items():
        key = f"{path}.{name}" if path else name
        if isinstance(inner, dict):
            yield from _values(inner, key)
        else:
            yield key, inner


def _is_given(key: str, given: Collection[str]) -> bool:
    """Whether the line sets it, or a mapping that it is in."""
    parts = key.split(".")
    return any(".".join(parts[:i]) in given for i in range(2, len(parts) + 1))
