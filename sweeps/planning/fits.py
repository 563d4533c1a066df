"""Which layouts of a model fit into the memory of GPUs: every one that a pattern makes, with its bytes by formula."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import gcd
from pathlib import Path

from mlkv.cache.formats import AS_COMPUTED
from mlkv.layout import KVLayout, divisors
from mlkv.measure.footprint import Footprint, cache_bytes_per_token, check_gpus, footprint, step_seconds
from mlkv.merges import check_conversion
from mlkv.patterns import PATTERNS, make
from sweeps.planning.compose import Composer
from sweeps.planning.parse import parse
from sweeps.planning.resolve import Model, Resolver
from sweeps.planning.yaml_files import read
from sweeps.store.code import CONF
from sweeps.store.errors import UserError, choices


@dataclass(frozen=True)
class Named:
    """A model, the line that chooses it, and its name in tables. hub: whether its weights are on the hub."""

    line: str
    name: str
    model: Model

    @property
    def hub(self) -> bool:
        return bool(self.model.source and "hub" in self.model.source)

    @property
    def trained_here(self) -> bool:
        return self.model.source is None


@dataclass(frozen=True)
class Serving:
    """What a model is to serve, and on what: `batch` sequences of `context` tokens on `gpus` GPUs of `memory` bytes
    each, which split the model between them."""

    memory: float
    context: int
    batch: int
    gpus: int = 1
    cache: str = AS_COMPUTED
    element_bytes: int = 2
    gpu: str | None = None


@dataclass(frozen=True)
class Fit:
    """A layout on these GPUs. patterns: which make it, or one with as many owners and heads; none for the base's own.
    per_token: bytes that a token leaves in the cache of one GPU. seconds: the least that a decoding step takes, where
    the GPU is known."""

    layout: KVLayout
    patterns: tuple[str, ...]
    bytes: Footprint
    per_token: int
    seconds: float | None

    def fits(self, serving: Serving) -> bool:
        return self.bytes.total <= serving.memory


def named_model(given: str, composer: Composer, resolver: Resolver) -> Named:
    """A model by its name in conf/model, by its name on the hub, or by its directory. Raises UserError."""
    line = _line_of(given, composer)
    config = parse(composer([line])).model
    found = resolver.model(config)
    if found.layout.latent:
        raise UserError(f"model = {given}: its layers cache a latent, which converts to no other layout")
    return Named(line, config.name, found)


def _line_of(given: str, composer: Composer) -> str:
    options = composer.options("model")
    directory = Path(os.path.expanduser(given))
    if given in options:
        return f"model={given}"
    if directory.is_dir():
        return f"model.path={given}"
    if given.count("/") == 1 and not given.startswith((".", "~", "/")):
        ours = {read(path).get("hub"): path.stem for path in (CONF / "model").glob("*.yaml")}
        return f"model={ours[given]}" if given in ours else f"model.hub={given}"
    raise UserError(f"model = {given}: no such directory, and no model of conf/model; {choices(given, options)}")


def fits(model: Model, serving: Serving) -> tuple[Fit, list[Fit]]:
    """Of the base's own layout, and of every other that a pattern with keys and values together makes of its heads: the
    largest cache first. Raises UserError where GPUs cannot split the model, and for a context beyond learned
    positions."""
    if model.shape.positions == "learned" and serving.context > model.shape.context:
        most = model.shape.context
        raise UserError(f"context = {serving.context:,}: the model has learned {most:,} positions, and takes no more")
    try:
        check_gpus(model.shape, serving.gpus)
    except ValueError as error:
        raise UserError(str(error)) from None
    return _fit(model, model.layout, (), serving), list(_others(model, serving))


def _others(model: Model, serving: Serving) -> Iterator[Fit]:
    patterns: dict[KVLayout, list[str]] = {}
    for pattern, layout in _made(model.layout):
        patterns.setdefault(layout, []).append(pattern)
    known: dict[tuple[int, int], Fit] = {}
    found = []
    for layout, names in patterns.items():
        key = layout.kv_layers, layout.kv_heads[0]
        if key not in known:  # bytes follow from the numbers of owners and heads
            known[key] = _fit(model, layout, tuple(names), serving)
        of_key = known[key]
        found.append(Fit(layout, tuple(names), of_key.bytes, of_key.per_token, of_key.seconds))
    yield from sorted(found, key=lambda fit: (-fit.per_token, -fit.layout.budget, -fit.layout.kv_layers))


def _made(base: KVLayout) -> Iterator[tuple[str, KVLayout]]:
    for pattern, row in PATTERNS.items():
        if row.values:
            continue
        for kv_layers in range(1, base.layers + 1):
            for kv_heads in divisors(gcd(*base.keys.kv_heads, *base.values.kv_heads)):
                with suppress(ValueError):  # the pattern has no such layout, or the base no such heads
                    layout = make(pattern, base.layers, base.heads, kv_layers, kv_heads)
                    check_conversion(base, layout)
                    if layout != base:
                        yield pattern, layout


def _fit(model: Model, layout: KVLayout, patterns: tuple[str, ...], serving: Serving) -> Fit:
    shape, gpus, cache, element_bytes = model.shape, serving.gpus, serving.cache, serving.element_bytes
    batch, context = serving.batch, serving.context
    load = partial(footprint, batch=batch, context=context, gpus=gpus, cache=cache, element_bytes=element_bytes)
    seconds = None
    if serving.gpu:
        seconds = step_seconds(
            shape,
            layout,
            serving.gpu,
            batch=batch,
            context=context,
            gpus=gpus,
            cache=cache,
            element_bytes=element_bytes,
        )
    per_token = cache_bytes_per_token(shape, layout, gpus, cache, element_bytes)
    return Fit(layout, patterns, load(shape, layout), per_token, seconds)
