"""The norm between the keys' projection and their rotation, where a family has one (Qwen3, Gemma 3, OLMo 2).

Nothing can be folded through it: a map of a head before the norm is none after it. So keys merge as they are, in every
merge, and only values are mapped into common frames first. The merged keys have the merge of the norms' weights.

Legend: `G` KV heads of the new owner, `K` head width, `R` base heads that become one.
"""

from __future__ import annotations

from ..merges import merge_named
from .heads import Group, State


def key_norm(layer: int) -> str:
    return f"blocks.{layer}.attention.k_norm.weight"


def merged_key_norm(state: State, group: Group, merge: str) -> State:
    """The weights of an owner's norm, where it has one: those of its group, merged as heads are; with newly initialised
    heads those of the owner."""
    if "k" not in group.kinds or key_norm(group.sources[0]) not in state:
        return {}
    head_dim = len(state[f"blocks.{group.sources[0]}.attention.k.weight"]) // group.base.heads_of(group.sources[0])
    norms = [state[key_norm(layer)].float() for layer in group.sources]
    heads = 1 if len(norms[0]) == head_dim else group.kv_heads  # the heads of a layer may share their weights
    members = [norm.unflatten(0, (heads, -1, head_dim)) for norm in norms]
    row = merge_named("first" if merge == "random" else merge)
    return {key_norm(group.owner): row.combine(members, members[0][:, 0]).flatten()}
