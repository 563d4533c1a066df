"""Which published decoders load, with what size: the table of docs/families.md.

    python benchmarks/families.py [--error|--merges]

Reads families.json beside it: what the config.json files of these models on the hub say of the decoder, and how many
parameters they are published with. `--error` prints instead the largest difference of the logits from transformers' own
for a tiny random model of each family, in every layout (tests/support/matrix.py), `--merges` which merge is exact for
which family (docs/conversion.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mlkv.families.config import layout_of, shape_of

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(__file__).with_suffix(".json")
HEAD = ("| model | model_type | parameters | KV bytes per token, bf16 | | checked |", "|---|---|---|---|---|---|")


def published() -> dict[str, dict[str, Any]]:
    """Model → `config`; `parameters` as published, null where this decoder does not load it; `source`, with which `all`
    values of the config were compared, the `sizes` alone, or `none`: then they are from memory."""
    models: dict[str, dict[str, Any]] = json.loads(SOURCE.read_text())
    return models


def row(name: str, model: dict[str, Any]) -> str:
    config, checked = model["config"], model["checked"]
    try:
        shape, layout = shape_of(config), layout_of(config)
    except ValueError as error:
        return f"| {name} | `{config['model_type']}` | – | – | refused: {error} | {checked} |"
    bytes_per_token = layout.kv_bytes_per_token(shape.head_dim)
    local = f"; {len(shape.local_layers)} of {shape.layers} layers local" if shape.local_layers else ""
    count = shape.parameters(layout)
    return f"| {name} | `{config['model_type']}` | {count:,} | {bytes_per_token:,} | exact{local} | {checked} |"


def table() -> str:
    return "\n".join([*HEAD, *(row(name, model) for name, model in published().items())])


if __name__ == "__main__":
    if sys.argv[1:] in (["--error"], ["--merges"]):
        sys.path.insert(0, str(ROOT))
        from tests.support.parity import errors_table, merges_table

        print(errors_table() if sys.argv[1] == "--error" else merges_table())
    else:
        print(table())
