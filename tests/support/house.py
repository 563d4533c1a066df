"""The rooms of the house and who imports whom, read from the code; and their drawing, docs/house.svg.

`python -m tests.support.house > docs/house.svg` draws it anew after a room or an import has come or gone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mlkv", "sweeps", "slurm", "analysis")
ROOMS = {
    "mlkv": ("families", "corpus", "convert", "train", "evaluate", "measure", "similarity", "export", "check"),
    "sweeps": ("store", "steps", "tracking", "sharing", "planning", "search", "worker", "dispatch", "cli", "api"),
    "analysis": ("data", "statistics", "tables", "figures", "page"),
}
"""The rooms of a package. For sweeps and analysis from the ground up: a room imports from those before it. A room is a
folder, or one file."""
FORWARDS = "mlkv"
"""The one package that is not empty: mlkv/__init__.py hands on what sweeps/api.py has, once it is asked for."""
Imports = Mapping[str, set[str]]
"""Room → the rooms it imports from; a package's own files are a room with the package's name."""


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the project by its full name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"), path


def imported(module: str, path: Path) -> set[str]:
    """Full names of what a file imports, at any depth."""
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, [above, node.module])) if node.level else node.module or ""
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    package, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    return f"{package}.{room}" if room in ROOMS.get(package, ()) else package


def room_imports() -> Imports:
    """Which rooms each room imports from. Entry points (`__main__`, and mlkv/__init__.py) only lead to the command line
    and to sweeps/api.py, and do not count."""
    graph: dict[str, set[str]] = {}
    for module, path in modules():
        if path.stem != "__main__" and module != FORWARDS and (names := imported(module, path)):
            ours = {room_of(name) for name in names if name.split(".")[0] in PACKAGES}
            graph.setdefault(room_of(module), set()).update(ours - {room_of(module)})
    return graph


def needed(graph: Imports) -> Imports:
    """The imports that do not follow from the others: a → c is left out where a → b → c."""
    reachable: dict[str, set[str]] = {}
    for room in TopologicalSorter(graph).static_order():
        direct = graph.get(room, set())
        reachable[room] = direct.union(*(reachable[other] for other in direct))
    return {
        room: {other for other in others if not any(other in reachable[third] for third in others - {other})}
        for room, others in graph.items()
    }


# Centre of each room in the drawing, in pixels, and what is said of it there.
DRAWN = {
    "sweeps.api": (230, 40, "the store from Python"),
    "sweeps.cli": (500, 40, "subcommands"),
    "sweeps.dispatch": (330, 130, "jobs, here or on SLURM"),
    "analysis.page": (820, 130, "the HTML report"),
    "sweeps.worker": (330, 220, "runs steps, holds claims"),
    "analysis.tables": (730, 220, "tables of a paper"),
    "analysis.figures": (910, 220, "figures"),
    "sweeps.search": (545, 220, "what to try, and what to stop"),
    "sweeps.planning": (330, 310, "a line → a graph of steps"),
    "sweeps.sharing": (560, 310, "packs of results"),
    "analysis.statistics": (820, 310, "errors, comparisons, fronts"),
    "slurm": (100, 400, "profiles, arrays, queue"),
    "sweeps.steps": (330, 400, "a file for each kind of step"),
    "sweeps.tracking": (625, 400, "Weights &amp; Biases"),
    "analysis.data": (820, 400, "one long table of results"),
    "sweeps.store": (625, 490, "steps, records, plans"),
    "mlkv.measure": (100, 590, "memory and speed"),
    "mlkv.convert": (280, 590, "MHA → fewer KV heads"),
    "mlkv.train": (460, 590, "base and uptraining"),
    "mlkv.evaluate": (640, 590, "bits per byte, lm-eval"),
    "mlkv.export": (900, 590, "doors to engines"),
    "mlkv.check": (900, 770, "conformance of models"),
    "mlkv.families": (280, 680, "checkpoints of others"),
    "mlkv.corpus": (550, 680, "text → token blocks"),
    "mlkv.similarity": (740, 680, "layers and heads alike"),
    "mlkv": (100, 770, "layout, model, recipes"),
}
VIA = {
    ("sweeps.store", "mlkv"): ((770, 490), (770, 770)),
    ("sweeps.cli", "mlkv.check"): ((996, 40), (996, 770)),
    ("sweeps.cli", "mlkv.export"): ((996, 40), (996, 590)),
    ("mlkv.export", "mlkv.families"): ((900, 725), (280, 725)),
}
"""Corners of arrows that would cross a box."""
COLOURS = {"sweeps": "#dbe9f6", "analysis": "#fdeccd", "slurm": "#e6e6e6", "mlkv": "#dcefdc"}
WIDTH, HEIGHT = 164, 48


def drawing(graph: Imports) -> str:
    """SVG: a box for each room, an arrow for each import that does not follow from others."""
    arrows = [_arrow(room, other) for room, others in sorted(needed(graph).items()) for other in sorted(others)]
    size = 'viewBox="0 0 1000 804"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">',
            '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            '<path d="M0 0 8 4 0 8z" fill="#555"/></marker>',
            '<rect width="100%" height="100%" fill="#fff"/>',
            *arrows,
            *map(_box, DRAWN),
            "</svg>\n",
        ]
    )


def _box(room: str) -> str:
    x, y, words = DRAWN[room]
    colour, name = COLOURS[room.split(".")[0]], room.replace(".", "/")
    corner = f'x="{x - WIDTH // 2}" y="{y - HEIGHT // 2}" width="{WIDTH}" height="{HEIGHT}"'
    return (
        f'<rect {corner} rx="6" fill="{colour}" stroke="#555"/><g text-anchor="middle">'
        f'<text x="{x}" y="{y - 4}" font-size="14" font-weight="bold">{name}</text>'
        f'<text x="{x}" y="{y + 14}" font-size="11.5">{words}</text></g>'
    )


def _arrow(room: str, other: str) -> str:
    centres = [DRAWN[room][:2], *VIA.get((room, other), ()), DRAWN[other][:2]]
    points = [_border(*centres[0], *centres[1]), *centres[1:-1], _border(*centres[-1], *centres[-2])]
    path = " ".join(f"{x} {y}" for x, y in points)
    return f'<path d="M{path}" stroke="#555" fill="none" marker-end="url(#tip)"/>'


def _border(x: int, y: int, to_x: int, to_y: int) -> tuple[int, int]:
    """Where the line from a box's centre to a point leaves the box."""
    across, down = to_x - x, to_y - y
    part = min(WIDTH / 2 / abs(across) if across else 1, HEIGHT / 2 / abs(down) if down else 1)
    return round(x + across * part), round(y + down * part)


if __name__ == "__main__":
    print(drawing(room_imports()), end="")
