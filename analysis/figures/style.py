"""How a layout family looks in every figure: Okabe and Ito's colour-blind safe colours, and a marker of its own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """`colour` on white paper, `dark` on a dark page; `marker` is matplotlib's name of the shape."""

    colour: str
    dark: str
    marker: str


LOOKS = {
    "MHA": Look("#333333", "#d0d4dc", "s"),
    "GQA": Look("#0072B2", "#4aa8e0", "^"),
    "MQA": Look("#B87900", "#f0b429", "D"),
    "MLKV": Look("#D55E00", "#ff8a3d", "o"),
    "CLA": Look("#009E73", "#2fcf9f", "v"),
    "KeepEnds": Look("#A3507F", "#e08fc0", "P"),
    "DenseFront": Look("#2E8BB8", "#7cc8ec", "<"),
    "DenseBack": Look("#7A6A00", "#d9c84a", ">"),
    "Pizza": Look("#6B4FA0", "#b59be6", "p"),
    "Sandwich": Look("#8A3B2A", "#e39a86", "h"),
}
_OTHER = Look("#6E6E6E", "#a8a8a8", "X")


def look(family: str | None) -> Look:
    return LOOKS.get(family or "", _OTHER)


def shades(colour: str, count: int) -> list[str]:
    """`count` colours from `colour` itself towards white, told apart in one family's lines; all readable on paper."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    steps = [0.0] if count < 2 else [0.55 * i / (count - 1) for i in range(count)]
    return ["#" + "".join(f"{round(c + (255 - c) * step):02x}" for c in (red, green, blue)) for step in steps]
