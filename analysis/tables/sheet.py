"""A table ready to be printed, in whichever format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["name", "shape", "cost", "measured", "score", "difference", "chance", "part"]


@dataclass(frozen=True)
class Cell:
    """`text` is what is printed; `number` what it is sorted by, `stderr` its standard error in the same unit; `missing`
    says in full why there is no number. `best` is in bold."""

    text: str
    number: float | None = None
    best: bool = False
    missing: str | None = None
    stderr: float | None = None


@dataclass(frozen=True)
class Column:
    header: str
    role: Role
    cells: list[Cell]


@dataclass(frozen=True)
class Sheet:
    """`baselines` tells which rows are baselines, by their key; `states` how far they are; `published` which rows are
    others'; `roles` what a column is for, so that a narrow terminal can leave out the least important. `footnotes` say
    how to read it."""

    headers: list[str]
    roles: list[Role]
    rows: list[list[Cell]]
    baselines: list[str | None]
    states: list[str]
    published: list[bool] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)

    @property
    def leading(self) -> int:
        """How many rows the baselines take at the top, with the published ones beside them; 0 where nothing follows."""
        pairs = enumerate(zip(self.baselines, self.published, strict=True))
        return next((i for i, (baseline, others) in pairs if baseline is None and not others), 0)

    @property
    def notes(self) -> list[str]:
        """Every reason for an empty cell, with the variants that it empties."""
        reasons: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for cell in row:
                if cell.missing:
                    reasons.setdefault(cell.missing, {})[row[0].text] = None
        return [f"{reason}: {', '.join(variants)}" for reason, variants in reasons.items()]


def assemble(
    columns: Sequence[Column],
    *,
    baselines: Sequence[str | None],
    states: Sequence[str],
    published: Sequence[bool] = (),
    footnotes: Sequence[str] = (),
) -> Sheet:
    """The sheet of these columns; one in which no cell says anything is left out."""
    told = [column for column in columns if column.role == "name" or any(cell.text for cell in column.cells)]
    return Sheet(
        headers=[column.header for column in told],
        roles=[column.role for column in told],
        rows=[list(cells) for cells in zip(*(column.cells for column in told), strict=True)],
        baselines=list(baselines),
        states=list(states),
        published=list(published) or [False] * len(states),
        footnotes=list(footnotes),
    )
