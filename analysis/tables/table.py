"""A table that is ready to be printed, in any format."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

BEST = "\ue000"
"""Stands in a note for what marks the best cells: the word `bold`, or a `*` where a format has no bold."""
Role = Literal["name", "shape", "cost", "measured", "score", "difference", "chance", "part"]


@dataclass(frozen=True)
class Cell:
    """`text` is what is printed; `number` what it is sorted by, `stderr` its standard error in the same unit; `missing`
    says in full why there is no number. `best` is printed in bold, or with a `*` where a format has no bold. `chance`:
    the number is no better than chance, which the text marks."""

    text: str
    number: float | None = None
    best: bool = False
    missing: str | None = None
    stderr: float | None = None
    plain: str | None = None
    """Where `text` has signatures behind it: the same without them, as files for programs have it; they have `signs`,
    the signatures, in a column of their own."""
    signs: str | None = None
    chance: bool = False


@dataclass(frozen=True)
class Column:
    header: str
    role: Role
    cells: list[Cell]


def header_key(header: str) -> str:
    """What names a column on the command line: its heading without the arrow, in small letters."""
    return header.rstrip(" ↑↓").strip().lower()


@dataclass(frozen=True)
class Table:
    """`baselines` has the role of each row that is a baseline; `states` the state of each row; `published` says which
    rows are published by others; `roles` has the purpose of each column, so that a narrow terminal can leave out the
    least important ones. `notes` explain how to read the table."""

    headers: list[str]
    roles: list[Role]
    rows: list[list[Cell]]
    baselines: list[str | None]
    states: list[str]
    published: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def leading_rows(self) -> int:
        """How many rows at the top are baselines or published counterparts of them; 0 where nothing follows."""
        pairs = enumerate(zip(self.baselines, self.published, strict=True))
        return next((i for i, (baseline, others) in pairs if baseline is None and not others), 0)

    def select(self, headers: Collection[str]) -> Table:
        """The names of the rows and the columns with these headings (header_key), in their order in the table."""
        shown = [i for i, header in enumerate(self.headers) if i == 0 or header_key(header) in headers]
        return replace(
            self,
            headers=[self.headers[i] for i in shown],
            roles=[self.roles[i] for i in shown],
            rows=[[row[i] for i in shown] for row in self.rows],
        )

    def notes_with(self, mark: str) -> list[str]:
        """The notes for a format that marks the best cells so."""
        return [note.replace(BEST, mark) for note in self.notes]

    @property
    def missing_values(self) -> list[str]:
        """Every reason for an empty cell, with the variants that have it."""
        reasons: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for cell in row:
                if cell.missing:
                    reasons.setdefault(cell.missing, {})[row[0].text] = None
        return [f"{reason}: {', '.join(variants)}" for reason, variants in reasons.items()]


def make_table(
    columns: Sequence[Column],
    *,
    baselines: Sequence[str | None],
    states: Sequence[str],
    published: Sequence[bool] = (),
    notes: Sequence[str] = (),
) -> Table:
    """The table of these columns, without those that are empty."""
    shown = [column for column in columns if column.role == "name" or any(cell.text for cell in column.cells)]
    return Table(
        headers=[column.header for column in shown],
        roles=[column.role for column in shown],
        rows=[list(cells) for cells in zip(*(column.cells for column in shown), strict=True)],
        baselines=list(baselines),
        states=list(states),
        published=list(published) or [False] * len(states),
        notes=list(notes),
    )
