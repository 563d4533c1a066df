"""What `mlkv advise` prints for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from analysis.data.units import count
from analysis.statistics.evidence import LEAST_SHARE
from analysis.statistics.prediction import LARGER, summaries
from mlkv.cache.formats import AS_COMPUTED

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.statistics.prediction import Form, LeftOut, Prediction
    from analysis.statistics.recipes import Recovery
    from sweeps.cli.advise import Advice, Advised
    from sweeps.planning.fits import Fit, Serving

_GIGA = 1e9
_MOST_RECOVERIES = 3


def show(console: Console, advice: Advice, *, every: bool) -> None:
    for line in _head(advice, every=every):
        console.print(Text(line))
    shown = advice.fitting if every else advice.worth
    if shown:
        console.print(_table(shown, advice, every=every))
    for line in _after(advice):
        console.print(Text(line))


def _head(advice: Advice, *, every: bool) -> Iterator[str]:
    model, serving = advice.named.model, advice.serving
    heads = "/".join(map(str, sorted({*model.layout.keys.kv_heads})))
    parameters = count(model.shape.parameters(model.layout))
    size = f"{parameters} parameters, {model.layout.layers} layers, {model.layout.heads} query heads"
    yield f"{advice.named.name}: {size}, {heads} KV heads in a layer"
    yield f"to serve: {_serving(serving)}"
    verdict = "fits" if advice.base.fits(serving) else "does not fit"
    yield f"its own layout {verdict}: {_bytes(advice.base)}"
    if serving.context > model.shape.context:
        yield f"context: {serving.context:,} tokens are more than the model's own {model.shape.context:,}"
    if not advice.fitting:
        least = f"; the smallest of {advice.total:,} takes {_bytes(advice.smallest)}" if advice.smallest else ""
        yield f"no layout fits{least}; --cache int8 or int4, more GPUs (--tp), or fewer tokens take less"
        return
    rest = "" if every else "; those worth a look below, all with --all"
    yield f"{len(advice.fitting):,} of {advice.total:,} other layouts fit{rest}"


def _serving(serving: Serving) -> str:
    gpus = "1 GPU" if serving.gpus == 1 else f"each of {serving.gpus} GPUs"
    kind = f" ({serving.gpu})" if serving.gpu else ""
    cache = "as computed" if serving.cache == AS_COMPUTED else serving.cache
    element = "4 bytes" if serving.element_bytes == 4 else "2 bytes"
    tokens = f"{serving.batch:,} sequence{'s' if serving.batch > 1 else ''} of {serving.context:,} tokens"
    return f"{tokens} with {serving.memory / _GIGA:.4g} GB on {gpus}{kind}; weights of {element}, cache {cache}"


def _bytes(fit: Fit) -> str:
    parts = fit.bytes
    names = {"weights": parts.weights, "cache": parts.cache, "activations": parts.activations}
    each = ", ".join(f"{name} {_gb(value)}" for name, value in names.items())
    return f"{_gb(parts.total)} GB on a GPU ({each}), {fit.per_token:,} bytes per token"


def _gb(value: float) -> str:
    number = value / _GIGA
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def _table(shown: Sequence[Advised], advice: Advice, *, every: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    timed = any(each.fit.seconds for each in shown)
    what = "loss" if advice.kind == "loss" else "loss of accuracy"
    names = ["owners × heads", "of its cache", "bytes/token", "GB on a GPU", *(["a step takes ≥"] if timed else [])]
    for name in [*names, f"expected {what}, %", "patterns"]:
        table.add_column(name, justify="left" if name in ("owners × heads", "patterns") else "right", no_wrap=True)
    for each in shown:
        layout, fit = each.fit.layout, each.fit
        share = Fraction(layout.budget) / Fraction(advice.named.model.layout.budget)
        cells = [f"{layout.kv_layers} × {layout.kv_heads[0]}", str(share), f"{fit.per_token:,}", _gb(fit.bytes.total)]
        cells += [f"{1e3 * fit.seconds:.3g} ms"] if timed and fit.seconds else []
        table.add_row(*cells, _cost(each.cost), ", ".join(fit.patterns) if every else _patterns(each, advice))
    return table


def _patterns(shown: Advised, advice: Advice) -> str:
    """All that make a layout with as many owners and heads."""
    key = shown.fit.layout.kv_layers, shown.fit.layout.kv_heads[0]
    alike = [each.fit for each in advice.fitting if (each.fit.layout.kv_layers, each.fit.layout.kv_heads[0]) == key]
    return ", ".join(dict.fromkeys(name for fit in alike for name in fit.patterns))


def _cost(cost: Prediction | None) -> str:
    if cost is None:
        return "not known"
    low, high = (f"{100 * value:+.1f}" for value in (cost.low, cost.high))
    marks = {" extrapolated": cost.extrapolated, " *": cost.beyond}
    return f"{100 * cost.value:+.1f} ({low} to {high}){''.join(mark for mark, holds in marks.items() if holds)}"


def _after(advice: Advice) -> Iterator[str]:
    if not advice.fitting:
        return
    yield _evidence(advice)
    if any(each.cost and each.cost.beyond for each in advice.worth):
        yield "  *: fewer owners, or fewer heads in them, than any layout of the evidence"
    if advice.serving.cache != AS_COMPUTED:
        yield f"  what a cache in {advice.serving.cache} costs by itself is not in it (docs/caches.md)"
    chosen = "layout=searched layout.spread=untrained chooses both (docs/placement.md)"
    yield f"  where owners sit, and which of them has more heads, is no part of it; {chosen}"
    yield from _recovery(advice.recoveries)
    if advice.problem:
        yield f"to run, once it can be planned ({advice.problem}):"
    else:
        yield "to run:"
    yield f"  {shlex.join(['mlkv', 'sweep', *advice.line])}"


def _evidence(advice: Advice) -> str:
    if not advice.sets:
        return "expected loss: no evidence, so no number is given"
    sizes = [each.parameters for each in advice.sets]
    rows = sum(len(each.rows) for each in advice.sets)
    names = ", ".join(dict.fromkeys(each.name for each in advice.sets))
    own = f", first of all {advice.own.name} on this model" if advice.own else "; none is of this model"
    line = (
        f"expected loss: relative to the base trained equally, with 95 % intervals; from {rows} layouts in {names} "
        f"(models of {count(min(sizes))} to {count(max(sizes))} parameters){own}"
    )
    model = advice.named.model
    times = model.shape.parameters(model.layout) / max(sizes)
    line += f"; this model is {times:.2g} times as large as the largest" if times > 1 else ""
    if any(each.cost and each.cost.extrapolated for each in advice.worth):
        line += f", which is beyond {LARGER:.0f} times: extrapolated"
    if advice.brief:
        names = ", ".join(advice.brief)
        line += f"; not counted, as trained on less than {LEAST_SHARE:.0%} of their base's tokens: {names}"
    return line


def _recovery(known: Sequence[Recovery]) -> Iterator[str]:
    if not known:
        yield "tokens to recover: not known"
        return
    yield "tokens to recover, the nearest evidence first:"
    for each in known[:_MOST_RECOVERIES]:
        least = f"{count(each.least)} to " if 0 < each.least < each.tokens else ""
        most = f"at most {count(each.tokens)}" if not each.least else count(each.tokens)
        far = "; extrapolated" if each.extrapolated else ""
        model = f"{count(each.parameters)} parameters"
        yield f"  {least}{most} ({each.how}; {model}): {each.outcome} [{each.source}]{far}"


def show_tests(console: Console, found: Sequence[LeftOut], form: Form, *, every: bool = False) -> None:
    """How far predictions are off, by set of evidence."""
    w, p = form.weight, form.power
    law = f"a · ({w:g} · ln(query heads per KV head)^{p:g} + {1 - w:g} · ln(layers per owner)^{p:g})"
    console.print(Text(f"relative loss = {law}, against the same of the base; a: of the model, or the mean of others"))
    head = "in percent, root mean squares: what rows lost, what their predictions are off"
    console.print(Text(f"{head}; ±: half the 95 % interval; in: rows that are in it"))
    table = Table(box=None, pad_edge=False)
    names = ("set", "of", "rows", "lost", "off without the row", "±", "in", "off without its model", "±", "in")
    for name in names:
        table.add_column(name, justify="left" if name in ("set", "of") else "right", no_wrap=True)
    for each in summaries(found):
        parts = [cell for errors in (each.without_row, each.without_model) for cell in _errors(errors)]
        table.add_row(each.set, each.kind, str(each.rows), f"{100 * each.losses:.2f}", *parts)
    console.print(table)
    if every:
        console.print(_rows(found))
    for name, pairs in (
        ("without the row", [(each.without_row, each.loss) for each in found]),
        ("without its model", [(each.without_model, each.loss) for each in found]),
    ):
        known = [prediction.low <= loss <= prediction.high for prediction, loss in pairs if prediction]
        console.print(Text(f"{name}: {sum(known)} of {len(known)} rows are in their 95 % intervals"))


def _rows(found: Sequence[LeftOut]) -> Table:
    """Every row: what it lost, and what it was expected to lose."""
    table = Table(box=None, pad_edge=False)
    for name in ("set", "row", "lost, %", "expected without the row", "without its model"):
        table.add_column(name, justify="left" if name in ("set", "row") else "right", no_wrap=True)
    for each in found:
        predictions = (_cost(each.without_row), _cost(each.without_model))
        table.add_row(each.set, each.row, f"{100 * each.loss:+.1f}", *predictions)
    return table


def _errors(errors: tuple[float, float, float] | None) -> tuple[str, str, str]:
    if errors is None:
        return "─", "─", "─"
    error, covered, reach = errors
    return f"{100 * error:.2f}", f"{100 * reach:.2f}", f"{covered:.0%}"
