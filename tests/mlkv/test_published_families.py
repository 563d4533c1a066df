"""docs/families.md: which published decoders load, and with what size; and every cell of family × layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from benchmarks.families import published, row, table
from mlkv.families.config import layout_of, shape_of
from tests.support.matrix import FAMILY_CONFIGS, LATER, LAYOUTS
from tests.support.parity import error

PUBLISHED = published()
_SMALLEST: dict[str, str] = {}
for _name, _model in sorted(PUBLISHED.items(), key=lambda item: item[1]["parameters"] or 0, reverse=True):
    if _model["parameters"]:
        _SMALLEST[_model["config"]["model_type"]] = _name
LOADED = [name for name, model in PUBLISHED.items() if model["parameters"]]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "families.md"


def test_the_table_in_the_docs_is_that_of_the_command() -> None:
    assert table() in DOCS.read_text()
    assert len(LOADED) >= 20
    checked = {name: model["checked"] for name, model in PUBLISHED.items()}
    assert all((how == "none") == (PUBLISHED[name]["source"] == "from memory") for name, how in checked.items())
    assert {*checked.values()} == {"all", "sizes", "none"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_size_or_is_refused_with_a_reason(name: str) -> None:
    config, parameters = PUBLISHED[name]["config"], PUBLISHED[name]["parameters"]
    if parameters is None:
        assert "refused: " in row(name, PUBLISHED[name])
        with pytest.raises(ValueError, match=r"^(model_type|rope_type) = \w+: .*take a"):
            shape_of(config)
    else:
        assert shape_of(config).parameters(layout_of(config)) == parameters


@pytest.mark.long
@pytest.mark.parametrize("name", _SMALLEST.values())
def test_parameters_and_bytes_are_those_of_transformers_own_model(name: str) -> None:
    config = PUBLISHED[name]["config"]
    with torch.device("meta"):
        theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**config), dtype=torch.bfloat16, attn_implementation="eager"
        )
        cache = DynamicCache(config=theirs.config)
        ids = torch.zeros(1, 3, dtype=torch.long)
        mask = torch.zeros(1, 1, 3, 3, dtype=torch.bfloat16)
        kinds = {"full_attention": mask, "sliding_attention": mask}
        by_kind = theirs.config.model_type in ("qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text")
        positions = torch.arange(3)[None]
        theirs(ids, attention_mask=kinds if by_kind else mask, position_ids=positions, past_key_values=cache)
    shape, layout = shape_of(config), layout_of(config)
    assert shape.parameters(layout) == theirs.num_parameters()
    held = sum(each.nbytes for layer in cache.layers for each in (layer.keys, layer.values))
    assert held == 3 * layout.kv_bytes_per_token(shape.head_dim, 2)


CELLS = [
    pytest.param(family, layout, marks=[] if layout == "explicit" and family in LATER else [pytest.mark.long])
    for family in FAMILY_CONFIGS
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("family", "layout"), CELLS)
def test_a_layout_computes_what_the_familys_own_code_does_with_its_owners_keys_and_values(
    family: str, layout: str
) -> None:
    assert error(FAMILY_CONFIGS[family], LAYOUTS[layout]) <= 1e-5
