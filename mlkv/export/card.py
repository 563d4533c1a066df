"""The model card of an export: layout, cache, scores, how it was made, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..layout import KVLayout
from ..patterns import name_of
from .checkpoint import Checkpoint
from .serving import NUMBERS, bytes_per_device
from .targets import Target

TAGS = ("kv-cache", "kv-sharing", "mlkv")


@dataclass(frozen=True)
class MadeBy:
    """One step that made the checkpoint: its id, its settings, and the versions of the packages it ran with."""

    id: str
    kind: str
    settings: Mapping[str, object]
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """What a store knows about a checkpoint beside its files.

    title: the heading. steps: those that made it, the first first. scores: a table in Markdown, or nothing. command:
    the words of the line that planned it. base_model: the hub's name of the model it began with. element_bytes: of a
    number in the cache whose bytes the scores show; None where they show those of packed integers, or there are none.
    """

    title: str
    steps: tuple[MadeBy, ...] = ()
    scores: str = ""
    command: tuple[str, ...] = ()
    base_model: str = ""
    element_bytes: int | None = None


def model_card(origin: Origin, checkpoint: Checkpoint, target: Target, name: str) -> str:
    """README.md of an export that is called `name`."""
    shape, layout = checkpoint.shape, checkpoint.layout
    parts = [
        _front_matter(origin),
        f"# {origin.title}",
        f"A decoder of {shape.parameters(layout):,} parameters in the KV layout {name_of(layout)}: "
        f"{layout.kv_layers} of its {layout.layers} layers compute and cache keys and values, with {layout.budget} "
        f"KV heads in all. Made with mlkv.",
        "## Layout",
        _drawing(layout),
        "## KV cache",
        _cache(checkpoint, origin),
        *(["## Scores", origin.scores.strip()] if origin.scores else []),
        "## Use",
        target.usage.format(name=name).strip(),
        *(["## How it was made", _history(origin)] if origin.steps else []),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(origin: Origin) -> str:
    """The YAML by which the hub files a model; JSON texts are YAML."""
    fields = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": list(TAGS)}
    if origin.base_model:
        fields["base_model"] = origin.base_model
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"])


def _drawing(layout: KVLayout) -> str:
    named = {"keys": layout.keys, "values": layout.values} if layout.apart else {"KV heads": layout}
    rows = {"layer": [*map(str, range(layout.layers))]} | {name: part.draw().split() for name, part in named.items()}
    width = max(len(cell) for cells in rows.values() for cell in cells)
    lines = [f"{name:<10}{' '.join(f'{cell:>{width}}' for cell in cells)}" for name, cells in rows.items()]
    legend = "A number: the layer keeps so many KV heads."
    if any(part.kv_layers < layout.layers for part in named.values()):
        legend += " `─`: it reads the keys and values of the nearest owner below; `←i`: those of layer i."
    if layout.reads_above:
        legend += (
            f" `↑i`: those of layer i above it, of the tokens before its own. Such layers run {layout.passes()} times "
            "over a prompt, and once for each token that is generated."
        )
    if layout.latent:
        legend += " `r`: what is cached in their place is a latent vector of that width."
    return "\n".join(["```text", *lines, "```", "", legend])


def _cache(checkpoint: Checkpoint, origin: Origin) -> str:
    """Bytes per token by the number of GPUs that a layer is spread over, in the numbers of the scores."""
    shape, layout = checkpoint.shape, checkpoint.layout
    spread = [count for count in (1, 2, 4, 8) if not shape.heads % count]
    size = origin.element_bytes or _BYTES[checkpoint.dtype]
    cells = (f"{bytes_per_device(layout, shape.head_dim, size, count):,}" for count in spread)
    full = KVLayout(tuple(range(layout.layers)), (layout.heads,) * layout.layers, layout.heads)
    ratio = full.kv_bytes_per_token(shape.head_dim) / layout.kv_bytes_per_token(shape.head_dim)
    smaller = ", one of ".join(f"{name} takes 1/{size // less}" for less, name in NUMBERS.items() if less < size)
    places = ("in all", *(f"on each of {count} GPUs" for count in spread[1:]))
    return "\n".join(
        [
            f"| bytes per token of text | {' | '.join(places)} |",
            f"| --- |{' ---: |' * len(spread)}",
            f"| {NUMBERS[size]} | {' | '.join(cells)} |",
            "",
            f"A number has {size} bytes here{_as_in_scores(origin)}. A cache of {smaller}. "
            f"A model of this shape without sharing caches {ratio:.3g} times as much.",
        ]
    )


def _as_in_scores(origin: Origin) -> str:
    if not origin.scores:
        return ""
    return ", as in the scores" if origin.element_bytes else "; the scores have the bytes of a cache of packed integers"


_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def _history(origin: Origin) -> str:
    lines = []
    if origin.command:
        lines += ["```", " ".join(origin.command), "```", ""]
    for step in origin.steps:
        settings = ", ".join(f"{key} = {value}" for key, value in _flat(step.settings).items())
        lines.append(f"- **{step.kind}** `{step.id}`" + (f": {settings}" if settings else ""))
    if versions := next((step.versions for step in reversed(origin.steps) if step.versions), None):
        lines += ["", f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}."]
    return "\n".join(lines)


def _flat(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings by one key each (`train.steps`), without those that have no value."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": text for inner, text in _flat(value).items()}
        elif value is not None:
            flat[key] = value if isinstance(value, str) else json.dumps(value)
    return flat
