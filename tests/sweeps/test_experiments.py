"""Every experiment at both scales: it plans, its rows are the published ones, and its small twin runs."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from benchmarks.families import published
from mlkv.groupings import groupings, of_sizes
from mlkv.patterns import cla, name_of
from sweeps.planning import hub
from sweeps.planning.compose import Composer
from sweeps.planning.memory import needed_memory
from sweeps.planning.parse import parse
from sweeps.planning.plan import Plan, make_plan
from sweeps.planning.resolve import Resolver
from sweeps.planning.variant import Variant
from sweeps.store.errors import UserError
from sweeps.store.store import Store
from tests.support.shell import ROOT, Shell

NAMES = [name for name in Composer().options("experiment") if name != "quickstart"]
DOCS = ROOT / "docs" / "experiments.md"
PUBLISHED = list(csv.DictReader((ROOT / "analysis" / "reference" / "layouts.csv").open()))


def neox(layers: int, heads: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": 2048,
    }


HUB: dict[str, dict[str, Any]] = {
    "EleutherAI/pythia-160m-deduped": neox(12, 12, 768),
    "EleutherAI/pythia-410m-deduped": neox(24, 16, 1024),
    "EleutherAI/pythia-1b-deduped": neox(16, 8, 2048),
    "openai-community/gpt2": {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
    },
    "facebook/opt-125m": {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "ffn_dim": 3072,
        "word_embed_proj_dim": 768,
        "max_position_embeddings": 2048,
    },
    "JackFram/llama-160m": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 2048,
    },
}
"""The config.json of every model that an experiment takes from the hub."""


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Plan]:
    """Plans made once: full ones with a hub that has these models and any text, small ones with none at all."""
    store, composer = Store(tmp_path_factory.mktemp("planned")), Composer()

    def no_hub(*_: object) -> str:
        raise AssertionError("a small twin asked the hub")

    @cache
    def plan(*line: str) -> Plan:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub, "_commit", no_hub if "scale=small" in line else lambda *_: "0" * 40)
            patch.setattr(hub, "model_config", lambda name, _commit: HUB[name])
            return make_plan(composer, Resolver(store), list(line))

    return plan


@pytest.mark.parametrize("name", NAMES)
def test_it_plans_as_published(name: str, planned: Callable[..., Plan]) -> None:
    plan = planned(f"experiment={name}")
    assert plan.name == name
    assert len(plan.variants) > 1
    assert all("#" not in variant.label for variant in plan.variants)


@pytest.mark.parametrize("name", NAMES)
def test_its_twin_plans_without_a_hub(name: str, planned: Callable[..., Plan]) -> None:
    plan = planned(f"experiment={name}", "scale=small")
    assert plan.name == f"{name}-small"
    assert all("#" not in variant.label for variant in plan.variants)
    assert max(variant.shape.parameters(variant.layout) for variant in plan.variants) < 10e6
    assert all(variant.config.corpus.source == "python_stdlib" for variant in plan.variants)


@pytest.mark.parametrize("name", ["mlkv_table", "families", "cla_1b", "systematic", "from_scratch"])
def test_without_a_hub_it_is_one_clear_error(name: str, unreachable: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the hub is out of reach and no copy is cached; set (model\.path|corpus\.)"):
        make_plan(Composer(), Resolver(Store(tmp_path / "store")), [f"experiment={name}"])


def rows(plan: Plan) -> list[tuple[Any, ...]]:
    """What of a plan's variants does not depend on its scale."""
    return [(v.layout.kv_source_layers, v.layout.kv_heads, v.baseline, v.config.convert.start) for v in plan.variants]


@pytest.mark.parametrize(
    "name",
    sorted(
        set(NAMES)
        - {"cla_lr", "drawn_layouts", "elastic", "families", "from_scratch", "ground_truth", "kv_apart", "stacking"}
        - {"searched_layouts"}
    ),
)
def test_a_twin_has_the_layouts_of_its_experiment(name: str, planned: Callable[..., Plan]) -> None:
    assert rows(planned(f"experiment={name}", "scale=small")) == rows(planned(f"experiment={name}"))


EXPERIMENTS = {
    "mlkv": "mlkv_table",
    "cla-1b": "cla_1b",
    "cla-1b-tuned": "cla_lr",
    "cla-3b-tuned": "cla_3b",
    "cla-3b-second": "cla_3b",
    "study-1b": "systematic",
}
"""Which experiment has the rows of a set of published layouts."""
ELSEWHERE = {"Random init"}
"""Published rows that are no layout."""


def is_row(published: dict[str, str], variant: Variant) -> bool:
    layout, shape = variant.layout, variant.shape
    ours = (variant.family, layout.kv_layers, layout.kv_heads[0], layout.heads, shape.head_dim)
    theirs = (int(published[key]) for key in ("kv_layers", "kv_heads", "heads", "head_dim"))
    return ours == (published["family"], *theirs)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda row: f"{row['set']} {row['variant']}")
def test_every_published_row_costs_what_was_published(published: dict[str, str], planned: Callable[..., Plan]) -> None:
    if published["variant"] in ELSEWHERE:
        return
    found = [v for v in planned(f"experiment={EXPERIMENTS[published['set']]}").variants if is_row(published, v)]
    assert found, "no variant of the experiment is this row"
    for variant in found:
        assert variant.row().kv_bytes_per_token == int(published["kv_bytes_per_token"])
        if published["parameters"]:
            assert variant.row().parameters == int(published["parameters"])


def test_every_published_benchmark_row_is_planned_at_its_learning_rate(planned: Callable[..., Plan]) -> None:
    best = {(24, 32): 6.75e-4, (24, 16): 2.25e-3, (48, 32): 1e-3, (48, 16): 1e-3, (96, 32): 1e-3}
    variants = planned("experiment=cla_3b").variants
    assert {(v.layout.heads, v.layout.kv_layers): v.config.uptrain.lr for v in variants} == best
    lrs = sorted({variant.config.uptrain.lr for variant in planned("experiment=cla_lr").variants})
    assert {1.5e-3, 2.25e-3} < set(lrs)
    assert [b / a for a, b in pairwise(lrs)] == pytest.approx([1.5] * 6, rel=0.02)


def test_the_ground_truth_is_every_grouping_of_the_layers(planned: Callable[..., Plan]) -> None:
    variants = planned("experiment=ground_truth").variants
    wanted = {(of_sizes(groups), (heads,) * len(groups)) for groups in groupings(6) for heads in (1, 2, 3, 6)}
    found = [(v.layout.kv_source_layers, v.layout.kv_heads, v.config.uptrain.seed) for v in variants if v.uptrain]
    assert len(wanted) == 128
    assert sorted(found) == sorted((*layout, seed) for layout in wanted for seed in (1, 2, 3))
    assert all(set(v.evaluate) == {"bits_per_byte"} and v.measure is None for v in variants)


def test_a_twin_of_layouts_has_some_of_them_with_the_same_steps(planned: Callable[..., Plan]) -> None:
    for name, layouts in (("ground_truth", 64), ("drawn_layouts", 21), ("searched_layouts", 36)):
        full, small = planned(f"experiment={name}"), planned(f"experiment={name}", "scale=small")
        assert len({v.layout for v in small.variants}) == layouts
        assert set(small.steps) <= set(full.steps)


def test_a_factor_is_that_factor(planned: Callable[..., Plan]) -> None:
    variants = planned("experiment=cla_factors", "scale=small").variants
    assert [v.layout.kv_source_layers for v in variants] == [cla(20, factor) for factor in range(1, 9)]


def test_native_and_uptrained_have_the_same_parameters(planned: Callable[..., Plan]) -> None:
    variants = planned("experiment=from_scratch", "scale=small").variants
    sizes = {name_of(v.layout): {w.shape.mlp_width for w in variants if w.layout == v.layout} for v in variants}
    assert all(len(widths) == 1 for widths in sizes.values())
    tokens = {(v.config.convert.start, v.config.uptrain.tokens) for v in variants if v.uptrain}
    base = next(v.base for v in variants if v.base)
    seen = base.slice["train"]["steps"] * base.slice["train"]["batch_size"] * 256
    assert tokens == {("convert", 133120), ("scratch", 133120), ("scratch", 133120 + seen)}


DOCUMENTED = re.compile(r"^\| `(\w+)` \|[^|]*\| (\d+) \| (\d+) \|[^|]*\|[^|]*\| (\d+), (\d+) \|", re.MULTILINE)


@pytest.mark.slow
def test_the_documented_table_is_the_plans(planned: Callable[..., Plan]) -> None:
    table = {name: tuple(map(int, counts)) for name, *counts in DOCUMENTED.findall(DOCS.read_text())}
    assert sorted(table) == NAMES
    for name, counts in table.items():
        full, small = planned(f"experiment={name}"), planned(f"experiment={name}", "scale=small")
        assert (len(full.variants), len(full.steps), len(small.variants), len(small.steps)) == counts, name


REDUCED = [
    "corpus=pocket",
    "corpus.sequence_length=64",
    "measure.batch_sizes=[1,2]",
    "measure.contexts=[16,32]",
    "measure.new_tokens=2",
    "measure.repeats=1",
    "tracking=off",
]
"""What makes a twin a test: it has all kinds of its variants, and next to no work."""
TRAINED = [
    "base.steps=1",
    "evaluate.limit=4",
    "evaluate.tasks=[bits_per_byte,heldout_choice4]",
    "evaluate.converted=[]",
    "evaluate.accuracy=[[heldout_choice4,acc]]",
]
STEPS = [*TRAINED, "uptrain.steps=2"]
FEW: dict[str, list[str]] = {
    "mlkv_table": [*STEPS, "layout.kv_layers=12,4,1", "layout.kv_heads=1,3,1"],
    "mlkv_410m": [*STEPS, "layout.kv_layers=8,1", "layout.kv_heads=1,1"],
    "mlkv_1b": [*STEPS, "layout.kv_layers=4,1", "layout.kv_heads=4,1"],
    "m_spectrum": [*STEPS, "layout.kv_layers=1,2,12"],
    "cla_1b": [*STEPS, 'sweep.filter="budget in (320, 80) or head_dim == 3"'],
    "cla_3b": [*STEPS, 'sweep.filter="kv_layers == 16 or head_dim == 4"'],
    "cla_patterns": STEPS,
    "cla_factors": [*STEPS, "layout.factor=1,2,8"],
    "cla_lr": [*STEPS, "uptrain.lr=1e-3,1.5e-3", 'sweep.filter="kv_layers == 10"'],
    "systematic": [*STEPS, 'sweep.filter="kv_layers > 3"'],
    "from_scratch": [
        *TRAINED,
        "layout.kv_layers=1",
        "convert.start=convert,scratch,scratch",
        "uptrain.tokens=256,256,512",
    ],
    "elastic": [
        *TRAINED,
        "evaluate.tasks=[bits_per_byte]",
        "evaluate.accuracy=[]",
        "layout.kv_layers=6,1",
        "layout.kv_heads=1,1",
        "elastic.steps=0,2",
        "uptrain.steps=2,0",
        "sweep.zip=[[layout.kv_layers,layout.kv_heads],[elastic,uptrain,elastic.steps,uptrain.steps]]",
    ],
    "families": [*STEPS, "layout.kv_layers=3", "layout.kv_heads=1"],
    "uptrain_fraction": [*TRAINED, "layout.kv_layers=6", "uptrain.epochs=0.001,0.01"],
    "stacking": [*TRAINED, "uptrain.steps=2", "layout.kv_layers=6", "layout.kv_heads=6", "cache=model,int4"],
    "kv_apart": [*STEPS, 'sweep.filter="value_heads != kv_heads or kv_layers == 3"'],
    "ground_truth": [
        *STEPS,
        "similarity.windows=4",
        "model.decoder.layers=3",
        "layout.groups=[1,1,1],[1,2],[2,1]",
        "layout.kv_heads=1",
    ],
    "drawn_layouts": [*STEPS, "similarity.windows=4", "layout.draw=0,1"],
    "searched_layouts": [
        *STEPS,
        "similarity.windows=4",
        "model.decoder.layers=3",
        "layout.rule=even,similar_first_cka_values",
        "layout.budget=2",
        "layout.kv_heads=1",
    ],
    "recall_base": [*TRAINED, "corpus.recall_items=0"],
    "base_lengths": [*TRAINED[1:], "base.steps=1,2"],
    "mlkv_memory": ["measure.memory_gib=0.03"],  # so few tokens fit into more by the ten thousand, which takes minutes
    "context": [],
}
"""Fewer variants of each, by the grid or by a filter."""

Finished = Callable[[str], tuple[Shell, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, text_files: Path) -> Finished:
    """From an experiment's name to a shell in a folder where its reduced twin has run, and the sweep's name there.

    All share one store, which is fresh when the first of them runs.
    """
    shell = Shell(tmp_path_factory.mktemp("experiments"))
    done: set[str] = set()

    def run(name: str) -> tuple[Shell, str]:
        if name not in done:
            files = f"corpus.files=[{text_files}/*.txt]"
            shell("sweep", f"experiment={name}", "scale=small", files, *REDUCED, *FEW[name], timeout=1200)
            done.add(name)
        return shell, f"{name}-small"

    return run


@pytest.mark.long(minutes=24)
@pytest.mark.parametrize("name", NAMES)
def test_its_twin_runs_to_the_end(name: str, finished: Finished) -> None:
    shell, sweep = finished(name)
    variants = shell.store.sweep(sweep).variants
    assert len(variants) > 1
    for variant in variants:
        ids = variant.steps.ids
        assert ids
        assert all(shell.store.step(id).state().name == "DONE" for id in ids)


KINDS = ("configuration", "losses", "benchmarks", "memory")
MEASURED_ALONE = {"mlkv_memory", "context"}
OF_SOME_VARIANTS = {"decoding", "training", "recovery", "heads_layers", "rules", "similarity", "options"}


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_its_tables_have_every_variant_in_every_format(name: str, finished: Finished) -> None:
    shell, sweep = finished(name)
    expected = {"configuration", "memory"} if name in MEASURED_ALONE else set(KINDS)
    expected |= {name} if name in ("elastic", "stacking") else set()
    for suffix in ("md", "tex", "csv"):
        shell("table", sweep, "--format", suffix, "-o", f"tables-{name}")
        written = {path.stem: path.read_text() for path in (shell.folder / f"tables-{name}").glob(f"*.{suffix}")}
        assert expected <= set(written) <= expected | OF_SOME_VARIANTS
        if name == "ground_truth":
            assert "similar first: CKA of keys" in written["rules"]
            assert "cheapest in all: damage of reading" in written["rules"]
        for kind in expected:
            text = written[kind]
            rows = [line for line in text.splitlines() if re.search(r"^\||\\\\$|,", line)]
            pairs = {"elastic": 2, "stacking": 1}
            shown = pairs.get(kind, len(shell.store.sweep(sweep).variants))
            assert len(rows) >= 1 + shown, (kind, suffix)
    printed = shell("table", sweep)
    assert all(variant.variant in printed for variant in shell.store.sweep(sweep).variants)
    assert "pending" not in printed


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_its_twins_figures_are_drawn(name: str, finished: Finished) -> None:
    shell, sweep = finished(name)
    shell("figure", sweep)
    drawn = {path.name for path in (shell.folder / "reports" / sweep / "figures").iterdir()}
    only_measured = name in ("mlkv_memory", "context")
    kinds = {"layouts"} | ({"memory", "throughput"} if only_measured else {"pareto", "curves"})
    kinds -= (
        {"curves"} if name in ("recall_base", "base_lengths") else set()
    )  # they score bases, and curves are of what is trained on
    assert {f"{kind}.{form}" for kind in kinds for form in ("png", "pdf", "svg")} <= drawn


LARGE = {
    "llama-3.1-8b": "Llama-3.1-8B",
    "mistral-7b": "Mistral-7B-v0.3",
    "qwen2.5-7b": "Qwen2.5-7B",
    "qwen3-8b": "Qwen3-8B",
}


@pytest.mark.parametrize("name", LARGE)
def test_a_large_models_row_has_the_published_values(name: str) -> None:
    config = parse(Composer()([f"model={name}", "base=none"])).model.config
    assert config == published()[LARGE[name]]["config"]


def test_a_large_model_can_be_looked_at_without_a_hub(unreachable: None, tmp_path: Path) -> None:
    line = ["model=llama-3.1-8b", "corpus=slimpajama", "corpus.tokenizer=model", "corpus.tokenizer_from=null"]
    line += ["base=none", "evaluate=none", "measure=none", "uptrain=8b", "layout.cache=1/8", "cluster=local_gpu"]
    line += ["resources.gpus=8"]
    plan = make_plan(Composer(), Resolver(Store(tmp_path / "store"), only_shown=True), line)
    assert plan.unresolved == ("meta-llama/Llama-3.1-8B", "cerebras/SlimPajama-627B")
    needed = needed_memory(plan.variants)
    assert {each.processes for each in needed} == {8}
    assert all(25 < each.memory.total / 2**30 < 35 for each in needed)
    with pytest.raises(UserError, match="the hub is out of reach"):
        make_plan(Composer(), Resolver(Store(tmp_path / "store")), line)
