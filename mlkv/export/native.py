"""Export to transformers' own model of a family: what every engine that knows the family serves, without our code."""

from __future__ import annotations

import json
from pathlib import Path

from ..families.config import config_of
from ..families.tables import FAMILIES
from .checkpoint import Checkpoint

NOT_HELD = {
    "latent": "no family of the table caches a latent",
    "apart": "no family of the table takes keys and values from different layers, or with other head counts",
    "reads_above": "no family of the table has layers that read the keys and values of a layer above them",
    "shares": "no family of the table has layers that read another layer's keys and values",
    "unequal": "no family of the table has another number of KV heads in each layer",
}


def refusal(checkpoint: Checkpoint) -> str | None:
    if reason := checkpoint.refused(NOT_HELD):
        return reason
    reasons = families_of(checkpoint).values()
    return None if None in reasons else f"no family of the table has this model (nearest: {min(reasons, key=_length)})"


def _length(reason: str | None) -> int:
    return len(reason or "")


def families_of(checkpoint: Checkpoint) -> dict[str, str | None]:
    """Every family → why it cannot express the checkpoint; None where it can."""
    found: dict[str, str | None] = {}
    for name in FAMILIES:
        try:
            config_of(checkpoint.shape, checkpoint.layout, name)
            found[name] = None
        except ValueError as error:
            found[name] = str(error).removeprefix("family = ")
    return found


def write(checkpoint: Checkpoint, out: Path) -> None:
    """As the first family of the table that can express it. Raises ValueError for weights that are damaged."""
    from ..families.save import export_pretrained

    name = next(name for name, reason in families_of(checkpoint).items() if reason is None)
    export_pretrained(checkpoint.path, out, name)
    if checkpoint.shape.attention_cap:
        _choose_eager(out / "config.json")


def _choose_eager(path: Path) -> None:
    """transformers 5.19 would run Gemma 2 by a kernel that silently leaves out the caps of attention."""
    config = json.loads(path.read_text("utf-8")) | {"attn_implementation": "eager"}
    path.write_text(json.dumps(config, indent=2), "utf-8")
