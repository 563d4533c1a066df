"""Which faster and smaller ways of computing a training takes where they are left open: decided when a sweep is
planned, by the kind of device, so that plans and ids hold what was decided."""

from __future__ import annotations

from dataclasses import replace

from mlkv.training_recipes import PLAIN
from sweeps.planning.config import TRAINED, Config
from sweeps.planning.plain_config import Values


def with_efficiency(config: Config, values: Values) -> tuple[Config, Values]:
    """The configuration, parsed and as it was composed, with `efficiency` of every training decided."""
    device, length = config.cluster.device, config.corpus.sequence_length
    for kind in TRAINED:
        recipe = getattr(config, kind)
        settled = recipe.settled(device, length)
        if settled != recipe:
            decided = {name: getattr(settled, name) for name in (*PLAIN, "efficiency")}
            config = replace(config, **{kind: settled})
            values = {**values, kind: {**values[kind], **decided}}
    return config, values
