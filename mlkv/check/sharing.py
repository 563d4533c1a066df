"""Which layer's keys and values each layer reads, measured, beside what the config says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .results import Found, Skipped
from .subject import Subject

Sources = list[int]
"""For each layer, the layer whose keys and values it reads; itself, if it computes its own."""


def sources(subject: Subject) -> Found:
    """The difference is the part of the layers that read another one than the config names."""
    expected = _read_layers(subject.config)
    found = measured_sources(subject)
    wrong = [i for i, named in enumerate(expected) if found[i] != named]
    words = [f"layer {i} reads {_layers(found[i])}, the config names {_layers(expected[i])}" for i in wrong]
    shared = sum(named != [i] for i, named in enumerate(expected))
    note = "; ".join(words) or (f"{shared} of {len(expected)} layers read another" if shared else "no layer is shared")
    return Found(len(wrong) / len(expected), note, bound=0.0)


def _layers(numbers: list[int]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {' and '.join(map(str, numbers))}"


def _read_layers(config: Any) -> list[Sources]:
    """For each layer the lower layers that it reads, or itself where there are none. In a layout of ours with keys and
    values apart (`value_source_layers`) it may read two, or own one and read the other."""
    keys = named_sources(config)
    values = getattr(config, "value_source_layers", None) or keys
    return [sorted({k, v} - {i}) or [i] for i, (k, v) in enumerate(zip(keys, values, strict=True))]


def named_sources(config: Any) -> Sources:
    """As a config says it: `kv_source_layers` (ours, Mistral Large 4); `num_kv_shared_layers` (Gemma 3n and 4: the last
    ones read the last owner of their own layer type); `use_cla` with `cla_share_factor` (Hunyuan)."""
    count = config.num_hidden_layers
    if getattr(config, "kv_source_layers", None):
        return list(config.kv_source_layers)
    if shared := getattr(config, "num_kv_shared_layers", None) or 0:
        types = list(config.layer_types)
        own = types[: count - shared]
        return [i if i < len(own) else len(own) - 1 - own[::-1].index(types[i]) for i in range(count)]
    if getattr(config, "use_cla", False):
        return [i - i % config.cla_share_factor for i in range(count)]
    return list(range(count))


def measured_sources(subject: Subject) -> list[Sources]:
    """For each layer the lower layers whose weights its output depends on, or itself where there are none.

    What goes from layer to layer as hidden states is cut off, so what is left comes by shared keys and values.
    """
    if getattr(subject.config, "forward_passes", None) is not None:
        raise Skipped("layers that read from above run several times in a pass, and are not told apart")
    try:
        layers = subject.layers
    except LookupError as error:
        raise Skipped(str(error)) from error
    weights = [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
    with torch.enable_grad():
        with _cut(subject) as outputs:
            subject.states(subject.ids)
        return [_read_by(i, output, weights[:i], subject.seed) for i, output in enumerate(outputs)]


def _read_by(layer: int, output: Tensor, lower: list[list[Any]], seed: int) -> Sources:
    numbers = [number for number, own in enumerate(lower) for _ in own]
    gradients = _gradients(output, [p for own in lower for p in own], seed)
    return sorted({n for n, gradient in zip(numbers, gradients, strict=True) if _is_there(gradient)}) or [layer]


def _gradients(output: Tensor, parameters: list[Any], seed: int) -> tuple[Tensor | None, ...]:
    """Of the output in fixed random proportions: norms make the gradient of a plain sum all but zero."""
    if not parameters or not output.requires_grad:
        return (None,) * len(parameters)
    proportions = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output)
    return torch.autograd.grad((output * proportions).sum(), parameters, retain_graph=True, allow_unused=True)


def _is_there(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.abs().max() > 0)


@contextmanager
def _cut(subject: Subject) -> Iterator[list[Tensor]]:
    """Each layer's output, in the order of the layers; the next layer gets it without its history."""
    outputs: list[Tensor] = []

    def hook(_module: object, _arguments: object, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        outputs.append(hidden)
        cut = hidden.detach()
        return (cut, *output[1:]) if isinstance(output, tuple) else cut

    handles = [layer.register_forward_hook(hook) for layer in subject.layers]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
