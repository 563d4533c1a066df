"""How a point of the sweep becomes variants."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from mlkv.layout import KVLayout, mha
from mlkv.layout_rules import SEARCHED
from sweeps.planning.checks import (
    check_elastic,
    check_layout,
    check_measure,
    check_read_fields,
    check_similarity,
    check_size,
    check_stopping,
    check_tasks,
    check_teacher,
)
from sweeps.planning.config import Config
from sweeps.planning.grammar import keeps
from sweeps.planning.labels import RULE, SPREAD, key_of
from sweeps.planning.plain_config import Values
from sweeps.planning.resolve import (
    Model,
    Resolver,
)
from sweeps.planning.searched import SearchedLayouts, compared, of_base
from sweeps.planning.variant import Variant
from sweeps.planning.variant_steps import with_steps
from sweeps.store.errors import UserError

STEPS = "uptrain.steps"
"""The key under which the rungs of a chain are swept values."""


def variants_of_point(
    resolver: Resolver,
    search: SearchedLayouts,
    config: Config,
    values: Values,
    varying: Sequence[str],
    *,
    baselines: bool = True,
) -> Iterator[Variant]:
    """The baselines of one point of the sweep, then those of its own layouts that pass the sweep's filter.

    Raises UserError for what could be known to fail, and ImpossibleLayoutError for a layout that the model cannot have.
    """
    model = resolver.model(config.model)
    check_size(config, model)
    check_stopping(config)
    config = compared(config)
    # Only a layout that a rule has made is called by it.
    given = tuple(line for line in varying if key_of(line) not in (RULE, SPREAD))
    point = Variant(config, values, model, model.layout, None, given)
    of_the_base = of_base(point) if config.layout.pattern == SEARCHED else point

    chosen = []
    wanted = config.sweep.baselines if baselines else ()
    if "untouched" in wanted and config.convert.start == "convert":
        chosen.append(replace(of_the_base, baseline="untouched"))
    if "mha" in wanted:
        chosen += _of_rungs(replace(of_the_base, baseline="mha"))
    for own in _with_layouts(point, search, resolver):
        for each in _of_rungs(replace(own, baseline="mha" if own.layout == model.layout else None)):
            if keeps(config.sweep.filter, _filter_names(each)):
                _check_layout(config, model, own.layout)
                chosen.append(each)
    if chosen and config.convert.start == "convert":
        resolver.check_base(config.model)
    if chosen:
        check_elastic(config, model, [each.layout for each in chosen if each.baseline != "untouched"])
        check_read_fields(config)
        check_tasks(config)
        check_teacher(config)
        check_measure(config, model)
        check_similarity(config, model)
    for each in chosen:
        yield with_steps(each, resolver)


def _of_rungs(variant: Variant) -> list[Variant]:
    """One for each rung of its training, which is then a swept value: its length. The configuration of each ends with
    its own rung."""
    recipe = variant.config.uptrain
    if not recipe.rungs or variant.config.convert.start == "none":
        return [variant]
    return [
        replace(
            variant,
            config=replace(variant.config, uptrain=replace(recipe, rungs=rungs)),
            values={**variant.values, "uptrain": {**variant.values["uptrain"], "rungs": list(rungs)}},
            varying=(*variant.varying, f"{STEPS}={rungs[-1]}"),
        )
        for rungs in (recipe.rungs[: i + 1] for i in range(len(recipe.rungs)))
    ]


class ImpossibleLayoutError(UserError):
    """The model cannot have the layout that a point of the sweep asks for."""


def _check_layout(config: Config, model: Model, layout: KVLayout) -> None:
    try:
        check_layout(config, model, layout)
    except UserError as error:
        raise ImpossibleLayoutError(str(error)) from None


def layout_count(resolver: Resolver, config: Config) -> int:
    """How many layouts the keys of a point leave; 0 where there is none."""
    model = resolver.model(config.model)
    own = model.layout
    start = own if config.convert.start == "convert" else mha(own.layers, own.heads)
    try:
        return len(config.layout.layouts(own, start))
    except ValueError:
        return 0


def _with_layouts(point: Variant, search: SearchedLayouts, resolver: Resolver) -> list[Variant]:
    """The point with each of its layouts; none where none can be made and the sweep's filter removes the point
    anyway."""
    config, own = point.config, point.model.layout
    search.see(config.layout)
    start = own if config.convert.start == "convert" else mha(own.layers, own.heads)
    try:
        if config.layout.pattern == SEARCHED:
            return [] if _removed(config, point.values, point.model) else [search.settled(point, resolver)]
        layouts = config.layout.layouts(own, start)
        return [replace(point, layout=config.layout.with_latent(each, start, point.model.shape)) for each in layouts]
    except ValueError as error:
        if _removed(config, point.values, point.model):
            return []
        if isinstance(error, UserError):
            raise
        raise ImpossibleLayoutError(f"model {config.model.name}: {error}") from None


def _removed(config: Config, values: Values, model: Model) -> bool:
    """Whether the filter removes a point, by what is known without a layout."""
    sizes = {
        key: value
        for key in ("kv_layers", "kv_heads", "value_heads", "budget")
        if (value := getattr(config.layout, key))
    }
    shape = {"layers": model.shape.layers, "heads": model.shape.heads, "head_dim": model.shape.head_dim}
    try:
        return not keeps(config.sweep.filter, {**values, "pattern": config.layout.pattern, **shape, **sizes})
    except UserError:  # it asks for what only a layout has
        return False


def _filter_names(variant: Variant) -> Values:
    """The names that `sweep.filter` can use: the configuration, and the properties of the layout that it gives."""
    layout, shape, rungs = variant.layout, variant.shape, variant.config.uptrain.rungs
    length = {"uptrain": {**variant.values["uptrain"], "steps": rungs[-1]}} if rungs else {}
    return {
        **variant.values,
        **length,
        "name": variant.name,
        "family": variant.family,
        "pattern": variant.config.layout.pattern,
        "rule": next((line.partition("=")[2] for line in variant.varying if key_of(line) == RULE), None),
        "kv_layers": layout.kv_layers,
        "kv_heads": _one_or_each(layout.kv_heads),
        "value_heads": _one_or_each(layout.values.kv_heads),
        "budget": layout.budget,
        "layers": layout.layers,
        "heads": layout.heads,
        "head_dim": shape.head_dim,
        "kv_bytes_per_token": variant.kv_bytes_of(2),
        "parameters": variant.parameters,
    }


def _one_or_each(heads: Sequence[int]) -> int | list[int]:
    return heads[0] if len(set(heads)) == 1 else list(heads)


def check_teacher_line(arguments: Iterable[str], variants: Collection[Variant]) -> None:
    """Raises UserError where the line sets what only stored predictions read, and no run learns from such."""
    given = next((line for line in arguments if line.startswith("teacher.")), None)
    if given and not any(variant.teacher for variant in variants):
        raise UserError(
            f"{given}: no run of this sweep reads it; set uptrain.teacher_logits=stored (with uptrain.teacher=base)"
        )
