"""A table as LaTeX (booktabs) that fits the text of a page: small type, smaller errors, and fewer columns or several
blocks where it would be wider."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from analysis.data.text import one_line
from analysis.tables.table import Cell, Role, Table

TEXT_WIDTH = 345.0
"""Points: the text of LaTeX's article at 10 pt, narrower than that of most journals and conferences."""
_OPTIONAL: tuple[Role, ...] = ("measured", "chance", "difference", "shape")
"""The columns that a table which is too wide leaves out, in this order."""
_GAP = 6.0
"""Points between two columns: twice \\tabcolsep."""
_WIDEST_CELL = 120.0
"""Points; longer texts are broken into lines."""
_LONGEST_WORD = 12
"""Letters without a place for a line break."""

_APART, _BREAK = "\ue000", "\ue001"
"""Between letters that must not join; where a long word may go on in another line."""
_ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    # Behind the end of a row these two would be its arguments.
    "[": "{[}",
    "*": "{*}",
    _APART: "{}",
    _BREAK: r"\allowbreak{}",
    "†": r"\dag{}",
    "±": r"$\pm$",
    "Δ": r"$\Delta$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "←": r"$\leftarrow$",
    "→": r"$\rightarrow$",
    "≈": r"$\approx$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "×": r"$\times$",
    "√": r"$\surd$",
    "Σ": r"$\Sigma$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def latex(printed: Table, *, compact: bool = True) -> str:
    """One `tabular`, or several where a page is too narrow for all columns; needs \\usepackage{booktabs} and nothing
    else. `compact` leaves out the columns that matter least where the rest then fits, and names them in a comment.
    Leading baselines stand above a rule."""
    shown = shown_columns(printed, compact=compact)
    left_out = [one_line(header) for i, header in enumerate(printed.headers) if i not in shown]
    notes = [*printed.notes_with("bold"), *printed.missing_values]
    return "\n".join(
        [
            *([f"% left out, as a page is too narrow: {', '.join(left_out)}"] if left_out else []),
            rf"{{\footnotesize\setlength{{\tabcolsep}}{{{_GAP / 2:g}pt}}%",
            *(line for block in blocks(printed, shown) for line in _tabular(printed, block)),
            "}",
            *(rf"\par{{\footnotesize {latex_text(note)}}}" for note in notes),
            "",
        ]
    )


def shown_columns(printed: Table, *, compact: bool) -> list[int]:
    """Without the least important columns if the others then fit in one block; else all columns, in several blocks."""
    every = range(len(printed.headers))
    for hidden in range(len(_OPTIONAL) + 1) if compact else ():
        shown = [i for i in every if printed.roles[i] not in _OPTIONAL[:hidden]]
        if width(printed, shown) <= TEXT_WIDTH:
            return shown
    return list(every)


def blocks(printed: Table, shown: Sequence[int]) -> list[list[int]]:
    """Columns that fit a page together, the names of the rows first in each."""
    name, *others = shown
    blocks = [[name]]
    for i in others:
        if len(blocks[-1]) > 1 and width(printed, [*blocks[-1], i]) > TEXT_WIDTH:
            blocks.append([name])
        blocks[-1].append(i)
    return blocks


def _tabular(printed: Table, shown: Sequence[int]) -> Iterator[str]:
    broken = {i for i in shown if _widest_cell(printed, i) > _WIDEST_CELL}
    yield rf"\begin{{tabular}}{{{''.join(_specification(i, broken) for i in shown)}}}"
    yield r"\toprule"
    yield _line([_header(printed, i) for i in shown])
    yield r"\midrule"
    for number, row in enumerate(printed.rows, start=1):
        yield _line([_cell(row[i], broken=i in broken) for i in shown])
        if number == printed.leading_rows:
            yield r"\midrule"
    yield r"\bottomrule"
    yield r"\end{tabular}\par"


def _specification(i: int, broken: set[int]) -> str:
    """A name starts on the left, a number ends on the right; long texts have lines."""
    return f"p{{{_WIDEST_CELL:g}pt}}" if i in broken else "r" if i else "l"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _header(printed: Table, i: int) -> str:
    lines = [latex_text(line) for line in _header_lines(printed, i)]
    stacked = r"\\".join(lines)
    return stacked if len(lines) == 1 else rf"\shortstack[{'r' if i else 'l'}]{{{stacked}}}"


def _header_lines(printed: Table, i: int) -> list[str]:
    """A heading in lines no longer than its longest word, or than the column's cells; an arrow ends a line."""
    words = re.sub(r" (?=[↑↓]$)", "\u00a0", " ".join(printed.headers[i].split())).split(" ")
    widest = max([*(_text_width(word) for word in words), *(_cell_width(row[i]) for row in printed.rows)])
    lines = words[:1]
    for word in words[1:]:
        if _text_width(f"{lines[-1]} {word}") <= min(widest, _WIDEST_CELL):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _cell(cell: Cell, *, broken: bool) -> str:
    """A score's error is in small type. A sign is that of a number, as a hyphen is no minus sign."""
    value, plus_minus, error = cell.text.partition(" ±")
    text = _escaped(_with_breaks(cell.text)) if broken else latex_text(value)
    if not cell.missing and not broken and (found := re.fullmatch(r"([+-][\d.,]+)(.*)", value)):
        text = f"${found[1]}${latex_text(found[2]) and ' ' + latex_text(found[2])}"
    text = rf"\textbf{{{text}}}" if cell.best else rf"\emph{{{text}}}" if cell.missing else text
    return rf"{text} {{\tiny $\pm${latex_text(error)}}}" if plus_minus and not broken else text


def _with_breaks(text: str) -> str:
    return re.sub(rf"([^\w\s]|\w{{{_LONGEST_WORD}}})(?=\S)", rf"\1{_BREAK}", one_line(text))


def latex_text(text: str) -> str:
    """What prints this text. A letter that pdflatex does not know without packages is given by its number."""
    return _escaped(one_line(text))


def _escaped(line: str) -> str:
    apart = re.sub(r"-(?=-)", f"-{_APART}", line)  # two hyphens are another sign
    return "".join(_ESCAPED.get(char) or _known(char) for char in apart)


def _known(char: str) -> str:
    """Latin letters are known, with and without accents."""
    return char if char < "\u0180" else f"U+{ord(char):04X}"


def width(printed: Table, shown: Sequence[int]) -> float:
    return sum(_column_width(printed, i) for i in shown) + _GAP * len(shown)


def _column_width(printed: Table, i: int) -> float:
    return max(min(_widest_cell(printed, i), _WIDEST_CELL), *map(_text_width, _header_lines(printed, i)))


def _widest_cell(printed: Table, i: int) -> float:
    return max((_cell_width(row[i]) for row in printed.rows), default=0.0)


def _cell_width(cell: Cell) -> float:
    value, plus_minus, error = one_line(cell.text).partition(" ±")
    tiny = 0.75 * _text_width(f" ±{error}") if plus_minus else 0.0
    return (1.15 if cell.best else 1.0) * _text_width(value) + tiny


@lru_cache(maxsize=10_000)
def _text_width(text: str) -> float:
    """Points in Computer Modern at 8 pt, to within a few per cent, rather too wide. Each choice of columns asks for the
    same cells once more."""
    return sum(_LETTER_WIDTHS.get(char, 6.3 if char.isupper() else 4.6) for char in text)


_LETTER_WIDTHS = {
    **dict.fromkeys("0123456789", 4.3),
    **dict.fromkeys(".,:;'|!il ", 2.5),
    **dict.fromkeys("()[]-jtfrI/", 3.4),
    **dict.fromkeys("mwMW%", 7.5),
    **dict.fromkeys("±×≈+−↑↓<>", 6.8),
}
