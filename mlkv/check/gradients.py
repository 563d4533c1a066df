"""A loss and its gradients are the same with a cache and without, and with activation checkpointing.

Checkpointing computes a layer a second time for its gradients. What a layer hands to another by the way, as shared keys
and values, is then easily computed twice, lost or taken from the wrong layer, and the loss shows nothing of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .results import Found, Skipped
from .subject import Subject, one_line

SMALL = 1e-3
"""A parameter whose gradient is less than this part of all is judged by that part: its own rounding is larger."""
Gradients = dict[str, Tensor]


def with_cache(subject: Subject) -> Found:
    """`use_cache=True` in a training pass."""
    if not subject.accepts("use_cache"):
        raise Skipped("the model takes no use_cache")
    return _compared(_computed(subject, use_cache=True), _computed(subject, use_cache=False))


def default(subject: Subject) -> Found:
    """Checkpointing as it is switched on without arguments."""
    return _checkpointed(subject, None)


def not_reentrant(subject: Subject) -> Found:
    """Checkpointing with `use_reentrant=False`."""
    return _checkpointed(subject, {"use_reentrant": False})


def reentrant(subject: Subject) -> Found:
    """Checkpointing with `use_reentrant=True`, which older scripts ask for."""
    return _checkpointed(subject, {"use_reentrant": True})


def _checkpointed(subject: Subject, kwargs: dict[str, bool] | None) -> Found:
    expected = _computed(subject)
    try:
        _switch(subject, kwargs)
    except (ValueError, NotImplementedError) as error:
        raise Skipped(f"the model refuses it: {one_line(error)}") from error
    try:
        return _compared(_computed(subject), expected)
    finally:
        getattr(subject.model, f"{_name(subject)}_disable")()


def _switch(subject: Subject, kwargs: dict[str, bool] | None) -> None:
    if not subject.model.supports_gradient_checkpointing:
        raise Skipped("the model has no checkpointing")
    getattr(subject.model, f"{_name(subject)}_enable")(**{f"{_name(subject)}_kwargs": kwargs})


def _name(subject: Subject) -> str:
    """Of the methods that switch it; transformers 5.23 renamed them."""
    new = "activation_checkpointing"
    return new if hasattr(subject.model, f"{new}_enable") else "gradient_checkpointing"


def _computed(subject: Subject, **arguments: Any) -> tuple[float, Gradients]:
    with subject.training(), torch.enable_grad():
        torch.manual_seed(subject.seed)
        loss = subject.loss(subject.ids, **arguments)
        loss.backward()
        return float(loss.detach()), {
            name: p.grad for name, p in subject.model.named_parameters() if p.grad is not None
        }


def _compared(found: tuple[float, Gradients], expected: tuple[float, Gradients]) -> Found:
    """The largest difference of a parameter's gradient as a part of that gradient, or of the loss if that is more."""
    (loss, gradients), (expected_loss, expected_gradients) = found, expected
    loss_difference = abs(loss - expected_loss) / abs(expected_loss)
    total = torch.stack([gradient.double().norm() for gradient in expected_gradients.values()]).norm()
    worst, name = loss_difference, "the loss"
    none = torch.zeros((), device=total.device)
    for each in sorted(expected_gradients.keys() | gradients.keys()):
        one, other = (of.get(each, none).double() for of in (gradients, expected_gradients))
        difference = float((one - other).norm() / torch.maximum(other.norm(), SMALL * total))
        if not difference <= worst:
            worst, name = difference, each
    note = f"largest at {name}; the loss differs by {loss_difference:.0e}" if name != "the loss" else ""
    return Found(worst, note)
