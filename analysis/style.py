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
}
_OTHER = Look("#A3507F", "#e08fc0", "P")


def look(family: str | None) -> Look:
    return LOOKS.get(family or "", _OTHER)
