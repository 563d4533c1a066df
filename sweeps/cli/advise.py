"""The subcommand that says which layouts of a model fit into memory, what they may cost, and what to run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlkv.gpus import BANDWIDTHS
from sweeps.cli.console import make_console, print_json
from sweeps.cli.options import JsonOption, StoreOptions, argument, user_path
from sweeps.store.errors import NOT_DONE, OK, UserError, choices

if TYPE_CHECKING:
    from pathlib import Path

    from analysis.statistics.evidence import EvidenceSet
    from analysis.statistics.prediction import Law, Prediction
    from analysis.statistics.recipes import Recovery
    from sweeps.planning.compose import Composer
    from sweeps.planning.fits import Fit, Named, Serving
    from sweeps.store.store import Store

UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
_MULTIPLES = {"": 1, "k": 2**10, "m": 2**20}
_DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}
SHOWN = 10
"""Layouts in the short table."""
_TRIED = 3
"""Of them, in the line to run."""
_LARGE = 3e9
"""Parameters from which a training takes the recipe for several GPUs."""


def _as_computed() -> str:
    from mlkv.cache.formats import AS_COMPUTED  # `mlkv --help` does without

    return AS_COMPUTED


@dataclass(frozen=True)
class AdviseOptions(JsonOption, StoreOptions):
    model: str | None = argument("a name of conf/model or of the hub, or a directory with config.json", "--model")
    memory: str | None = argument("of each GPU, as in 24GB or 80GiB", "--memory")
    context: str | None = argument("tokens of a sequence; 32k is 32,768", "--context")
    batch: str | None = argument("sequences at once", "--batch")
    tp: str = argument("GPUs that the model is split between (default: 1)", "--tp", default="1")
    gpu: str | None = argument(f"adds the least time of a step: {', '.join(BANDWIDTHS)}", "--gpu")
    cache: str = argument("numbers of the cache: model (as computed), int8, int4", "--cache", default=_as_computed)
    dtype: str = argument("numbers of weights and activations: bf16, fp16, fp32", "--dtype", default="bf16")
    all: bool = argument("list every layout that fits; with --evaluate, every row", "--all", action="store_true")
    evaluate: bool = argument(
        "print how far predictions are off, each row predicted from the others", "--evaluate", action="store_true"
    )
    config_dir: Path | None = argument(
        "a directory of your own configurations, shaped like conf/", "--config-dir", type=user_path
    )


@dataclass(frozen=True)
class Advised:
    """A layout that fits, with what it is expected to cost; None without evidence."""

    fit: Fit
    cost: Prediction | None


@dataclass(frozen=True)
class Advice:
    """worth: the fitting layouts that a short table shows, least expected loss first. brief: sets that do not count, as
    their layouts were trained too little. line: the sweep to run; problem: why it cannot be planned here, if it
    cannot."""

    named: Named
    serving: Serving
    base: Fit
    fitting: list[Advised]
    worth: list[Advised]
    total: int
    smallest: Fit | None
    kind: str
    own: EvidenceSet | None
    sets: list[EvidenceSet]
    brief: list[str]
    recoveries: list[Recovery]
    line: list[str]
    problem: str | None


def advise(options: AdviseOptions) -> int:
    from sweeps.store.store import Store

    store = Store(options.store)
    if options.evaluate:
        return _evaluate(options, store)
    advice = make_advice(options, store)
    if options.json:
        from sweeps.cli.advise_json import of_advice

        print_json(of_advice(advice))
    else:
        from sweeps.cli.advise_text import show

        show(make_console(), advice, every=options.all)
    return OK if advice.fitting or advice.base.fits(advice.serving) else NOT_DONE


def _evaluate(options: AdviseOptions, store: Store) -> int:
    from analysis.statistics.evidence import published_sets, store_sets
    from analysis.statistics.prediction import best_form, leave_out

    sets = [*published_sets(), *store_sets(store)]
    found, form = leave_out(sets), best_form([each for each in sets if not each.brief])
    if options.json:
        from sweeps.cli.advise_json import of_tests

        print_json(of_tests(found, form))
    else:
        from sweeps.cli.advise_text import show_tests

        show_tests(make_console(), found, form, every=options.all)
    return OK


def make_advice(options: AdviseOptions, store: Store) -> Advice:
    from analysis.statistics.evidence import Size, published_sets, store_sets
    from analysis.statistics.prediction import Law
    from analysis.statistics.recipes import own_set, recoveries
    from sweeps.planning.compose import Composer
    from sweeps.planning.fits import fits, named_model
    from sweeps.planning.resolve import Resolver

    serving, composer = read_serving(options), Composer(options.config_dir)
    assert options.model, "read_serving has seen to it"
    named = named_model(options.model, composer, Resolver(store, only_shown=True))
    model = named.model
    parameters = float(model.shape.parameters(model.layout))
    base, others = fits(model, serving)
    sets = [*published_sets(), *store_sets(store)]
    law = Law(each for each in sets if not each.brief or each.model == named.name)
    reference, own = Size.of(model.layout), own_set(sets, named.name, law)
    kind = own.kind if own else "loss"

    def cost(fit: Fit) -> Prediction | None:
        return law.predict(Size.of(fit.layout), reference, kind, parameters, own)

    fitting = [Advised(fit, cost(fit)) for fit in others if fit.fits(serving)]
    worth = worth_a_look(fitting)
    known = recoveries(sets, own, parameters)
    line, problem = (
        _line(named, serving, worth[:_TRIED], own, known, parameters, composer, store) if worth else ([], None)
    )
    smallest = min(others, key=lambda fit: fit.bytes.total, default=None)
    return Advice(
        named,
        serving,
        base,
        fitting,
        worth,
        len(others),
        smallest,
        kind,
        own,
        _used(law, kind, own),
        [each.name for each in sets if each not in law.sets and each.brief],
        known,
        line,
        problem,
    )


def _used(law: Law, kind: str, own: EvidenceSet | None) -> list[EvidenceSet]:
    """The sets that predictions of this kind lean on."""
    return [each for each in law.sets if each.kind == kind and (own is None or each is own or each.group != own.group)]


def worth_a_look(fitting: Sequence[Advised]) -> list[Advised]:
    """One for each number of owners and heads, placed evenly where it can be, such that none with as few bytes is
    expected to cost less; of many, some evenly along their bytes, the least loss first."""
    best: dict[tuple[int, int], Advised] = {}
    for each in fitting:
        key = each.fit.layout.kv_layers, each.fit.layout.kv_heads[0]
        if key not in best or "even" in each.fit.patterns:
            best[key] = each
    front: list[Advised] = []
    for each in sorted(best.values(), key=lambda each: (each.fit.bytes.total, _loss(each), -each.fit.layout.budget)):
        while front and front[-1].fit.bytes.total == each.fit.bytes.total and _loss(each) < _loss(front[-1]):
            front.pop()
        if not front or _loss(each) < _loss(front[-1]):
            front.append(each)
    front.reverse()
    if len(front) <= SHOWN:
        return front
    return [front[round(i * (len(front) - 1) / (SHOWN - 1))] for i in range(SHOWN)]


def _loss(each: Advised) -> float:
    """Without evidence the larger cache is taken for the better one."""
    return each.cost.value if each.cost else -float(each.fit.layout.budget)


def _line(
    named: Named,
    serving: Serving,
    tried: Sequence[Advised],
    own: EvidenceSet | None,
    known: Sequence[Recovery],
    parameters: float,
    composer: Composer,
    store: Store,
) -> tuple[list[str], str | None]:
    """The words of a sweep of these layouts that can be planned, and None; else the first that was tried, and why it
    cannot."""
    layouts = _layout_words(tried)
    cache = [f"cache={serving.cache}"] if serving.cache != _as_computed() else []
    recipe = _recipe_words(own, known, parameters)
    first: tuple[list[str], str | None] | None = None
    for text in _texts(named, parameters):
        words = [named.line, *text, *recipe, *layouts, *cache, "uptrain.seed=1,2,3", "name=advised"]
        problem = _problem(words, composer, store)
        if problem is None:
            return words, None
        first = first or (words, problem)
    assert first, "there is a text to be tried"
    return first


def _layout_words(tried: Sequence[Advised]) -> list[str]:
    rows = [
        {
            "layout.pattern": (each.fit.patterns if "even" not in each.fit.patterns else ("even",))[0],
            "layout.kv_layers": str(each.fit.layout.kv_layers),
            "layout.kv_heads": str(each.fit.layout.kv_heads[0]),
        }
        for each in tried
    ]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    swept = [key for key, values in columns.items() if len(set(values)) > 1]
    words = [f"{key}={','.join(values if key in swept else values[:1])}" for key, values in columns.items()]
    return [*words, f"sweep.zip=[{','.join(swept)}]"] if len(swept) > 1 else words


def _recipe_words(own: EvidenceSet | None, known: Sequence[Recovery], parameters: float) -> list[str]:
    group = "uptrain=8b" if parameters >= _LARGE else "uptrain=distilled"
    teacher = ["uptrain.teacher=base"] if parameters >= _LARGE else []
    chosen = [word for word in own.how.split() if word != "convert.merge=svd"] if own and "=" in own.how else []
    steps = [] if parameters >= _LARGE else ["uptrain.steps=null"]
    tokens = [*steps, f"uptrain.tokens={known[0].tokens:.0f}"] if known else []
    return ["convert=svd", group, *dict.fromkeys([*teacher, *chosen]), *tokens]


def _texts(named: Named, parameters: float) -> list[list[str]]:
    """What it may be trained and scored on: as its configuration has it where the base is trained here, if need be
    without measurements; else a large text of the hub, or the small one of this machine."""
    if named.trained_here:
        return [[], ["measure=none"]]
    gpus = ["cluster=local_gpu", "resources.gpus=8"] if parameters >= _LARGE else []
    large = ["corpus=slimpajama", "corpus.tokenizer=model", "corpus.tokenizer_from=null", "evaluate=study", "base=none"]
    small = ["base=none"]
    return [[*text, "measure=none", *gpus] for text in ((large, small) if named.hub else (small, large))]


def _problem(words: Sequence[str], composer: Composer, store: Store) -> str | None:
    """Why a line cannot be planned; None where it can."""
    from sweeps.planning.plan import make_plan
    from sweeps.planning.resolve import Resolver

    try:
        make_plan(composer, Resolver(store, only_shown=True), words)
    except UserError as error:
        return str(error)
    return None


def read_serving(options: AdviseOptions) -> Serving:
    """Raises UserError for what is missing, and for values that are none."""
    from mlkv.cache.formats import CACHES
    from sweeps.planning.fits import Serving

    needed = {name: getattr(options, name) for name in ("model", "memory", "context", "batch")}
    if missing := [f"--{name}" for name, value in needed.items() if value is None]:
        raise UserError(f"advise: give {', '.join(missing)}, as in --model tiny --memory 24GB --context 32k --batch 64")
    if options.cache not in CACHES:
        raise UserError(f"cache = {options.cache}: {choices(options.cache, CACHES)}")
    if options.dtype not in _DTYPES:
        raise UserError(f"dtype = {options.dtype}: {choices(options.dtype, _DTYPES)}")
    return Serving(
        memory=read_memory(str(options.memory)),
        context=read_count("context", str(options.context)),
        batch=read_count("batch", str(options.batch)),
        gpus=read_count("tp", options.tp),
        cache=options.cache,
        element_bytes=_DTYPES[options.dtype],
        gpu=_gpu(options.gpu),
    )


def _gpu(given: str | None) -> str | None:
    if given is None:
        return None
    for name in BANDWIDTHS:
        if name.lower() == given.strip().lower():
            return name
    raise UserError(f"gpu = {given}: {choices(given, BANDWIDTHS)}")


def read_memory(text: str) -> float:
    """`24GB` in bytes. Raises UserError without a unit."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([A-Za-z]+)", text.strip())
    unit = next((each for each in UNITS if found and each.lower() == found[2].lower()), None)
    if not found or unit is None or not float(found[1]):
        raise UserError(f"memory = {text}: a number above 0 with a unit, as in 24GB (valid: {', '.join(UNITS)})")
    return float(found[1]) * UNITS[unit]


def read_count(name: str, text: str) -> int:
    """`32k` is 32,768. Raises UserError."""
    found = re.fullmatch(r"(\d{1,9})([km]?)", text.strip().lower())
    if not found or not int(found[1]):
        raise UserError(f"{name} = {text}: a whole number above 0; k is times 1,024, m times 1,048,576")
    return int(found[1]) * _MULTIPLES[found[2]]
