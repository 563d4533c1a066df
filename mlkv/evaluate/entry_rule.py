"""The entry test of a base, as a rule over two numbers. No torch: tables and `mlkv why` say what it asks."""

from __future__ import annotations

from collections.abc import Sequence

from ..context import MetricRow
from .tasks import CONTEXT_GAIN, COPYING, ENTRY_TEST

COPIED_AT, MOST_NATS = 64, 1.0
"""The distance of the test's copies, and what a token of them costs less than."""
SHORT, LONG = 16, 256
"""Tokens of context that the test compares."""
LEAST_GAIN = 0.1
"""Nats per token that LONG tokens of context have to be worth more than SHORT."""
RULE = (
    f"a base that copies at distance {COPIED_AT} for less than {MOST_NATS:g} nat per token, and to which {LONG} tokens "
    f"of context are worth {LEAST_GAIN:g} nats more than {SHORT}"
)


def passes(copied: float, gain: float) -> bool:
    return copied < MOST_NATS and gain >= LEAST_GAIN


def failure(rows: Sequence[MetricRow]) -> str | None:
    """What a model fails that these rows are the scores of; None where they have no entry test, or it passes."""
    values = {row.metric: row.value for row in rows if not row.subtask}
    copied, gain, passed = (values.get(name) for name in (COPYING, CONTEXT_GAIN, ENTRY_TEST))
    if passed != 0 or copied is None or gain is None:
        return None
    reasons = [
        *([f"copying costs {copied:.2f} nats (asked: < {MOST_NATS:g})"] if copied >= MOST_NATS else []),
        *([f"context is worth {gain:.3f} nats (asked: ≥ {LEAST_GAIN:g})"] if gain < LEAST_GAIN else []),
    ]
    return f"fails the entry test: {', '.join(reasons)}"
