"""A checkpoint of ours as exports see it: its config, without the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..families.config import OURS, layout_of, read_config, shape_of
from ..layout import KVLayout
from ..shape import DecoderShape


@dataclass(frozen=True)
class Checkpoint:
    """keys: whether readers attend to rotated keys (`mlkv.model.Decoder`). dtype: torch's name of the weights' type."""

    path: Path
    shape: DecoderShape
    layout: KVLayout
    keys: str
    dtype: str

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Raises ValueError for a directory without a valid checkpoint of ours."""
        config = read_config(path)
        if config.get("model_type") != OURS:
            raise ValueError(f"{path}: model_type = {config.get('model_type')}: must be {OURS}")
        return cls(path, shape_of(config), layout_of(config), config.get("keys", "rotated"), config["dtype"])

    @property
    def shares(self) -> bool:
        """Whether a layer reads another's keys and values."""
        return self.layout.kv_layers < self.layout.layers

    @property
    def reads_unrotated(self) -> bool:
        """Whether a reader attends to keys as they are before rotation; without readers nothing does."""
        return self.keys == "unrotated" and self.shares

    @property
    def latent(self) -> bool:
        return self.layout.latent is not None

    @property
    def apart(self) -> bool:
        return self.layout.apart

    @property
    def reads_above(self) -> bool:
        return self.layout.reads_above

    @property
    def unequal(self) -> bool:
        """Whether owners have different numbers of KV heads."""
        return len(set(self.layout.kv_heads)) > 1

    def refused(self, reasons: Mapping[str, str]) -> str | None:
        """The first of a target's reasons, by the property of this class that it cannot hold; None if it can hold all.
        `{counts}` in a reason becomes the numbers of KV heads."""
        counts = " or ".join(map(str, sorted(set(self.layout.kv_heads))))
        found = (reason for name, reason in reasons.items() if getattr(self, name))
        return next(found, "").format(counts=counts) or None
