"""Which weights a training changes, by name. Needs no torch: plans count them."""

from __future__ import annotations

import re

ADAPTED = r".*\.attention\.([qkvo]|latent)"
"""The modules that get an adapter, by name: every projection of attention's input and output. A latent's maps to keys
and values (`k_up`, `v_up`) get none: their weights are multiplied into queries and outputs."""
_KEYS_AND_VALUES = re.compile(r".*\.(attention\.([kv]|latent|k_up|v_up)|kv_norm)\.(weight|bias)")
"""Of the owners, which alone have them; a norm of their own where the shape gives them one (`kv_norm`)."""


def is_trained(name: str, train: str) -> bool:
    """Whether `uptrain.train` = `all`, `kv` or `lora` changes the base's own weight of this name."""
    return train == "all" or (train == "kv" and bool(_KEYS_AND_VALUES.fullmatch(name)))


def is_adapted(module: str) -> bool:
    """Whether a module gets an adapter under `lora`."""
    return bool(re.fullmatch(ADAPTED, module))
