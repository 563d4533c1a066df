"""Every key that a configuration can have, and values that a slip, a script or another program may put there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

from sweeps.planning.config import Config

NUMBERS = ["-1", "0", "1", "-0.5", "0.5", "1.5", "inf", "-inf", "nan", "1e400", "1e308", "5e-324"]
LARGE = ["9223372036854775808", "9223372036854775807", "4294967296", "10000000000", "1" + "0" * 400, "1" + "0" * 4400]
SPELLINGS = ["'12'", "'0x10'", "1_000", "010", "1:30", "1e-4", "off", "no", "8GB", "1h", "true", "false", "null"]
TEXTS = ["''", "' '", "x", "'\0'", "'a\nb'", "'\x1b[31m'", "'..'", "'/'", "'$x'", "'~nobody/x'", "'{gpus}'", "é😀"]
TEXTS += ["'\udcff'"]
NESTED = ["[]", "[1]", "[[1]]", "[-1]", "[x]", "[null]", "[true]", "['']", "{}", "{a:1}", "{1:2}", "{a:{b:c}}"]
GRAMMAR = ["'${nope}'", "'${'", "'${oc.env:HOME}'", "???", "range(0,1,0)", "range(1,10000000000)", "interval(0,1)",
           "glob(zzz)", "choice()", "1,[", "'" + "x" * 100_000 + "'", "[" * 500]  # fmt: skip
VALUES = [*NUMBERS, *LARGE, *SPELLINGS, *TEXTS, *NESTED, *GRAMMAR]


def keys(schema: Any = Config, path: str = "") -> Iterator[str]:
    """Every key of the schema, groups before their fields; resources of two kinds stand for those of all."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if (schema, field.name) == (Config, "added"):
            continue
        hint, place = hints[field.name], f"{path}{field.name}"
        yield place
        nested = next((t for t in (hint, *get_args(hint)) if dataclasses.is_dataclass(t)), None)
        if nested is None:
            continue
        inside = [f"{place}.base", f"{place}.measure"] if get_origin(hint) is dict else [place]
        for each in inside:
            yield from keys(nested, f"{each}.")
