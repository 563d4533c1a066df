"""Our checkpoint → transformers' own model of a family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..files import share
from .config import config_of
from .load import copy_companions
from .tables import FAMILIES, Config, Family
from .weights import add_prefix, to_family_state

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ..hf import MLKVForCausalLM

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def to_family(model: MLKVForCausalLM, name: str) -> PreTrainedModel:
    """The same weights as transformers' own model of family `name`. Raises ValueError if that has no such layout."""
    tokens = {token: getattr(model.generation_config, token) for token in SPECIAL_TOKENS}
    theirs = _new_model({**config_of(model.shape, model.layout, name), **tokens}, model.dtype)
    written = to_family_state(model.model.state_dict(), FAMILIES[name], model.shape.heads)
    theirs.load_state_dict(add_prefix(written, FAMILIES[name], set(theirs.state_dict())))
    theirs.generation_config = model.generation_config
    _add_older_keys(theirs, FAMILIES[name], model)
    return theirs


def _add_older_keys(theirs: PreTrainedModel, family: Family, model: MLKVForCausalLM) -> None:
    """Write the rotation under the keys of transformers 4 too: vLLM, CTranslate2 and others read a partial rotation
    from there alone, and without it take the family's default without a word."""
    if family.rotary and family.rotary.partial:
        setattr(theirs.config, family.rotary.base, model.shape.rotary_base)
        setattr(theirs.config, family.rotary.fraction, model.shape.rotary_fraction)


def _new_model(config: Config, dtype: torch.dtype) -> PreTrainedModel:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    except (StrictDataclassError, ValueError, AssertionError) as error:
        refusal = " ".join(str(error).split())
        raise ValueError(f"family = {config['model_type']}: transformers refuses this model: {refusal}") from error


def export_pretrained(checkpoint: Path, out: Path, name: str) -> None:
    """Write our checkpoint as a Hugging Face directory of family `name`. Raises ValueError like `to_family`."""
    from ..hf import load_checked

    to_family(load_checked(checkpoint), name).save_pretrained(out)
    copy_companions(checkpoint, out)
    share(out)
