"""What `mlkv advise --json` prints. The keys are a promise (docs/automation.md); more may be added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from analysis.statistics.prediction import summaries

if TYPE_CHECKING:
    from analysis.statistics.prediction import Form, LeftOut
    from mlkv.files import Json
    from sweeps.cli.advise import Advice, Advised
    from sweeps.planning.fits import Fit, Serving


def of_advice(advice: Advice) -> Json:
    model = advice.named.model
    worth = {id(each) for each in advice.worth}
    return {
        "model": advice.named.name,
        "parameters": model.shape.parameters(model.layout),
        "serving": asdict(advice.serving),
        "own": _fit(advice.base, advice.serving),
        "layouts": [{**_advised(each, advice.serving), "shown": id(each) in worth} for each in advice.fitting],
        "evidence": [
            {"set": each.name, "kind": each.kind, "parameters": each.parameters, "rows": len(each.rows)}
            for each in advice.sets
        ],
        "not_counted": advice.brief,
        "recovery": [asdict(each) for each in advice.recoveries],
        "line": ["mlkv", "sweep", *advice.line] if advice.line else None,
        "problem": advice.problem,
    }


def _fit(fit: Fit, serving: Serving) -> Json:
    return {
        "fits": fit.fits(serving),
        "layout": fit.layout.as_dict(),
        "patterns": list(fit.patterns),
        "kv_layers": fit.layout.kv_layers,
        "kv_heads": list(fit.layout.kv_heads),
        "bytes": {**asdict(fit.bytes), "total": fit.bytes.total},
        "bytes_per_token": fit.per_token,
        "step_seconds": fit.seconds,
    }


def _advised(each: Advised, serving: Serving) -> Json:
    return {**_fit(each.fit, serving), "expected": asdict(each.cost) if each.cost else None}


def of_tests(found: Sequence[LeftOut], form: Form) -> Json:
    """`errors` are root mean square, the share of rows in their intervals, and half the mean length of these."""
    return {
        "weight": form.weight,
        "power": form.power,
        "sets": [asdict(each) for each in summaries(found)],
        "rows": [asdict(each) for each in found],
    }
