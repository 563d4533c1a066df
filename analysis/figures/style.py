"""Colours and markers: the same for a layout family in every figure and on the page."""

from __future__ import annotations

import re
from dataclasses import dataclass

MUTED, GRID, ALARM = "#6f7682", "#e9ebee", "#b00020"
"""Of remarks and reference lines; of grids; of what ran out of memory."""
SERIES_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#A3507F", "#B87900", "#333333", "#2E8BB8")
SERIES_MARKERS = "o^vPDs<"
"""Of lines that are not one family's."""
BASELINE_DASHES = {"untouched": (1.2, 1.8), "mha": (5.0, 2.0)}
"""The level of each kind of baseline: dashes and gaps, in line widths."""


@dataclass(frozen=True)
class FamilyStyle:
    """`colour` on white paper, `dark` on a dark page; `marker` is matplotlib's name of the shape."""

    colour: str
    dark: str
    marker: str


# Blue, vermilion and green are Okabe and Ito's, which colour-blind readers tell apart (Color Universal Design, 2008,
# https://jfly.uni-koeln.de/color/). Their orange, sky blue and purple are darkened here: as thin lines and 6 pt names
# they are too pale on white. Thirteen colours are more than anybody tells apart, so every family has its own marker as
# well.
FAMILY_STYLES = {
    "MHA": FamilyStyle("#333333", "#d0d4dc", "s"),
    "GQA": FamilyStyle("#0072B2", "#4aa8e0", "^"),
    "MQA": FamilyStyle("#B87900", "#f0b429", "D"),
    "MLKV": FamilyStyle("#D55E00", "#ff8a3d", "o"),
    "CLA": FamilyStyle("#009E73", "#2fcf9f", "v"),
    "KeepEnds": FamilyStyle("#A3507F", "#e08fc0", "P"),
    "DenseFront": FamilyStyle("#2E8BB8", "#7cc8ec", "<"),
    "DenseBack": FamilyStyle("#7A6A00", "#d9c84a", ">"),
    "Pizza": FamilyStyle("#6B4FA0", "#b59be6", "p"),
    "Sandwich": FamilyStyle("#8A3B2A", "#e39a86", "h"),
    "FusedKV-Lite": FamilyStyle("#1B7F8C", "#5fc4d1", "d"),
    "FusedKV-Lite-reverse": FamilyStyle("#B5485D", "#f08fa3", "8"),
    "SVFormer": FamilyStyle("#5B7A1F", "#a9cf5f", "*"),
}
_OTHER = FamilyStyle("#6E6E6E", "#a8a8a8", "X")


def family_style(family: str | None) -> FamilyStyle:
    """A layout whose owners are in the middle or at the top of their groups has the style of the one that is read from
    the bottom: names tell them apart."""
    partition = re.sub("-(middle|top)$", "", family or "").replace("Lasagna", "MLKV")
    return FAMILY_STYLES.get(partition, _OTHER)


def shades(colour: str, count: int) -> list[str]:
    """`count` colours from `colour` itself towards white, the palest of them still readable on paper."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    steps = [0.0] if count < 2 else [0.55 * i / (count - 1) for i in range(count)]
    return ["#" + "".join(f"{round(c + (255 - c) * step):02x}" for c in (red, green, blue)) for step in steps]


def shades_by_name(names: list[tuple[str, str | None]]) -> dict[str, str]:
    """A colour for each (name, family): the family's, paler from name to name."""
    by_family: dict[str | None, list[str]] = {}
    for name, family in dict.fromkeys(names):
        by_family.setdefault(family, []).append(name)
    return {
        name: shade
        for family, members in by_family.items()
        for name, shade in zip(members, shades(family_style(family).colour, len(members)), strict=True)
    }
