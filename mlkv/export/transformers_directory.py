"""Export to a directory with the decoder's own code, which transformers runs with trust_remote_code=True."""

from __future__ import annotations

from pathlib import Path

from ..families.load import copy_companions
from .checkpoint import Checkpoint


def refusal(_checkpoint: Checkpoint) -> None:
    """Every checkpoint can be exported so."""


def write(checkpoint: Checkpoint, out: Path) -> None:
    """Raises ValueError for weights that are damaged."""
    from ..hf import load_checked

    load_checked(checkpoint.path).save_pretrained(out)  # writes the code of today beside the weights
    copy_companions(checkpoint.path, out)
