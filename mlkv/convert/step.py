"""A base checkpoint → one with fewer KV heads: merge the heads, and give the saved parameters to the MLPs.

Legend: `D` width, `F` MLP width, `G` KV heads of an owner, `K` head width, `R` base heads that become one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..context import Context, Outcome, StepFailed
from ..families.load import copy_companions
from ..files import Json
from ..layout import KVLayout
from ..merges import WIDENINGS, approximations, check_conversion, converted_shape
from ..recipes import ConvertRecipe
from ..shape import DecoderShape
from .merging import merge_kv

if TYPE_CHECKING:
    from ..hf import MLKVForCausalLM
    from .calibration import Calibration
    from .heads import State


def run(
    recipe: ConvertRecipe,
    out: Path,
    ctx: Context,
    *,
    layout: KVLayout,
    base: Path | None,
    calibration: Path | None = None,
    shape: DecoderShape | None = None,
    tokenizer: Path | None = None,
) -> Outcome:
    """Write to `out` the checkpoint `base` converted to `layout`, or without one (`scratch`) a random one of exactly
    `shape`, which the plan has widened already.

    Raises StepFailed where the base cannot become `layout`.
    """
    ctx.log({"step": 0, "steps": 1})
    try:
        changes: list[str] = []
        if base is None:
            model = _scratch(recipe, layout, shape)
        else:
            model, changes = _converted(recipe, layout, base, calibration)
    except ValueError as error:
        raise StepFailed(str(error)) from error
    model.save_pretrained(out)
    for source in (base, tokenizer):
        if source is not None:
            copy_companions(source, out)
    ctx.log({"step": 1, "steps": 1})
    facts: Json = {"parameters": model.num_parameters(), "mlp_width": model.shape.mlp_width}
    if layout.latent and base is not None:
        facts["rotation"] = "whole" if model.shape.keeps_rotation(layout) else "approximate"
    if changes:
        facts["approximate"] = "; ".join(changes)
    return Outcome(facts=facts)


def _scratch(recipe: ConvertRecipe, layout: KVLayout, shape: DecoderShape | None) -> MLKVForCausalLM:
    from ..hf import MLKVForCausalLM

    if shape is None:
        raise ValueError("start = scratch: needs the shape of a decoder")
    return MLKVForCausalLM.from_shape(shape, layout, seed=recipe.seed)


def _converted(
    recipe: ConvertRecipe, layout: KVLayout, base: Path, calibration: Path | None
) -> tuple[MLKVForCausalLM, list[str]]:
    """The model, and why it is approximate."""
    from ..hf import load_checked, non_finite
    from .calibration import Calibration

    source = load_checked(base)
    model = convert(source, layout, recipe, Calibration.load(calibration) if calibration else None)
    if reason := non_finite(model.state_dict()):
        raise ValueError(f"merge = {recipe.merge}: {reason}, although all weights of the base are")
    return model, approximations(source.shape, source.layout, layout, recipe.merge)


def convert(
    base: MLKVForCausalLM, layout: KVLayout, recipe: ConvertRecipe, calibration: Calibration | None = None
) -> MLKVForCausalLM:
    """A new model with `base`'s weights merged into `layout`; `base` stays unchanged.

    KV heads that need no merging stay bit for bit, whatever the merge: with the base's own layout this is the identity.
    Raises ValueError like `check_conversion`.
    """

    from ..hf import MLKVForCausalLM
    from .latent import with_latent

    check_conversion(base.layout, layout)
    shape = converted_shape(base.shape, base.layout, layout, recipe.widening)
    options = {"seed": recipe.seed, "dtype": base.dtype, "keys": base.model.keys}
    model = MLKVForCausalLM.from_shape(shape, layout, **options)
    if layout.latent and layout != base.layout:
        if calibration is None:
            raise ValueError("latent: needs a calibration")
        # First the heads are merged, then each owner's keys and values become a latent.
        heads = MLKVForCausalLM.from_shape(shape, layout.without_latent, **options)
        state = with_latent(_state(base, heads, recipe, calibration), shape, layout, calibration)
    else:
        state = _state(base, model, recipe, calibration)
    model.model.load_state_dict(state)
    model.generation_config = base.generation_config
    return model


def _state(
    base: MLKVForCausalLM, fresh: MLKVForCausalLM, recipe: ConvertRecipe, calibration: Calibration | None
) -> State:
    """The weights of `fresh`, whose layout has fewer heads than `base`'s, made from those of `base`."""
    import torch

    old, new = base.model.state_dict(), fresh.model.state_dict()
    new |= {name: old[name] for name in new if name in old and not re.search(r"\.attention\.(k|v|k_norm)\.", name)}
    # An owner's separate norm for keys and values starts as the one that they shared with the queries.
    added_norms = [name for name in new if ".kv_norm." in name and name not in old]
    new |= {name: old[name.replace(".kv_norm.", ".attention_norm.")] for name in added_norms}
    with torch.no_grad():
        rotated = base.shape.rotated_dims
        new |= merge_kv(old, new, base.layout, fresh.layout, recipe.merge, rotated, calibration, recipe.grouping)
        new |= widen_mlps(old, fresh.shape.mlp_width, recipe.widening)
    return new


def widen_mlps(old: State, width: int, widening: str) -> State:
    """MLPs of `width` units: the new ones are copies of the first ones, in turn if there are more new than old.

    Where the widening divides a unit's outgoing weights by the number of its copies, the copies add up to the one unit
    and the model computes the same function as before (Net2WiderNet, arXiv 1511.05641).
    """
    import torch

    parts = WIDENINGS.choose(widening).parts
    widened: State = {}
    for name, tensor in old.items():
        if ".mlp.down.weight" in name:
            units = tensor.shape[1]
            chosen_F = torch.arange(width, device=tensor.device) % units
            copies_F = (width - 1 - chosen_F) // units + 1
            widened[name] = (tensor[:, chosen_F] / parts(copies_F)).to(tensor.dtype)
        elif ".mlp.up." in name or ".mlp.gate." in name:
            widened[name] = tensor[torch.arange(width, device=tensor.device) % tensor.shape[0]]
    return widened
