"""Options that a line chooses and its experiment overrules: Hydra sets an experiment's values after those of every
option, whoever chose it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sweeps.planning.compose import parse_overrides
from sweeps.planning.plain_config import Values, select
from sweeps.store.errors import UserError, shown

if TYPE_CHECKING:
    from sweeps.planning.compose import Composer

_OF_ALL = ("experiment", "scale")
"""Groups that set the values of others."""
_SHOWN = 4
"""Values that are named."""


def overruled(composer: Composer, lines: Sequence[str], typed: Sequence[str]) -> list[str]:
    """In one line for each such option: which of its values the experiment replaces.

    lines: of a point, with what the experiment's own grid chooses. typed: by a person. Raises UserError for a line that
    is no override.
    """
    keys = [override.key_or_group for override in parse_overrides(lines)]
    chosen = {key: line for key, line in zip(keys, lines, strict=True) if key in composer.groups}
    own = {group: line for group, line in chosen.items() if group not in _OF_ALL}
    by_hand = [own[key] for override in parse_overrides(typed) if (key := override.key_or_group) in own]
    if "experiment" not in chosen or not by_hand:
        return []
    now, found = composer.plain([*chosen.values()]), list[str]()
    with suppress(UserError):  # options that compose with this experiment alone
        alone = composer.plain([*own.values()])
        for line in by_hand:
            without = composer.plain([each for each in own.values() if each != line])
            lost = [
                f"{key} = {shown(select(now, key))}"
                for key, wanted in _values(alone)
                if wanted not in (select(without, key), select(now, key)) and not _is_given(key, keys)
            ]
            found += [_note(line, lost)] if lost else []
    return found


def _note(line: str, lost: Sequence[str]) -> str:
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return f"{line}: the experiment sets {', '.join(lost[:_SHOWN])}{more}; to change that, give it on the line"


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
