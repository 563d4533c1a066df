"""Every recipe in conf/ plans, and every `mlkv` line of the README and the docs is one the program understands."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from sweeps.cli import _parse, _parser
from sweeps.compose import Composer
from sweeps.config import parse
from sweeps.plan import make_plan
from sweeps.resolve import Resolver
from sweeps.store import Store

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
NEED = {
    "corpus/text_files": ["corpus.files=[x]"],
    "corpus/pile_dedup": ["model=pythia-160m-deduped"],
    "corpus/slimpajama": ["model=cla-1b"],
    "scale/small": ["experiment=mlkv_table"],
}
OPTIONS = [
    f"{path.parent.name}/{path.stem}" for path in sorted(CONF.glob("*/[!_]*.yaml")) if path.parent.name != "tasks"
]
LINE = re.compile(r"^\s*(?:\$ )?(mlkv [a-z]+ .*?)(?:\s{2,}#.*)?$|`(mlkv [a-z]+[^`]*)`", re.MULTILINE)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_fills_the_schema(option: str) -> None:
    group, name = option.split("/")
    parse(Composer()([f"{group}={name}", *NEED.get(option, [])]))


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("[!_]*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_plans(path: Path, tmp_path: Path) -> None:
    """Hub models from a local copy of their shape, hub corpora by a commit: what is planned, not what is downloaded."""
    copy = tmp_path / "model"
    copy.mkdir()
    shape = {"model_type": "gpt_neox", "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768}
    more = {"intermediate_size": 3072, "vocab_size": 50304, "max_position_embeddings": 2048, "rotary_pct": 0.25}
    flags = {"hidden_act": "gelu", "use_parallel_residual": True, "tie_word_embeddings": False}
    (copy / "config.json").write_text(json.dumps(shape | more | flags))
    (copy / "model.safetensors").write_bytes(b"")
    composed = Composer()([f"experiment={path.stem}"])
    hub = [f"model.path={copy}"] if composed["model"].get("hub") else []
    pinned = [f"corpus.revision={'0' * 40}"] if composed["corpus"]["source"] == "hf" else []
    pinned += [f"corpus.tokenizer_revision={'0' * 40}"] if composed["corpus"].get("tokenizer_from") else []
    plan = make_plan(Composer(), Resolver(Store(tmp_path / "store")), [f"experiment={path.stem}", *hub, *pinned])
    assert len(plan.variants) > 1
    assert plan.name == path.stem


def commands() -> list[str]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found += [line or quoted for line, quoted in LINE.findall(path.read_text())]
    return sorted({line for line in found if "…" not in line and "--config-dir" not in line and line.count(" ") > 1})


@pytest.mark.parametrize("line", commands())
def test_every_documented_command_is_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.replace("[NAME]", "NAME"))[1:]
    options = _parse(_parser(), words)
    assert callable(options.run)
    if getattr(options, "overrides", None):
        from sweeps.grammar import points

        next(iter(points(Composer(), [word for word in options.overrides if "=" in word])))
