"""The one decoder: GPT-NeoX, Llama, GPT-2 and OPT are settings of it, and it is built for any KV layout.

Its parts: tokens.py (positions, masks and the cache of a pass), packed.py (several documents in a row), attention.py,
positions.py (rotation), layers.py (norms and MLP) and latent.py. above.py runs layers that read from above. Nothing in
them knows transformers: a cache is anything with `KVCache`'s three methods.

Legend: `B` batch, `T` query tokens, `S` keys (cached and new), `D` width.

An owner's keys and values go to their readers inside the forward pass, in a dict by kind and owner: a layer may read
the keys of one owner and the values of another. They do not go through the cache object: without a cache (training)
there is none, and with one it holds the owners' alone, which is the memory that sharing saves.
"""

from __future__ import annotations

from typing import get_args

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import Attention
from .latent import LatentAttention, SharedLatent
from .layers import MLP, Embedding, capped, norm_of
from .layout import KINDS, KVLayout
from .packed import Documents
from .shape import DecoderShape, check_choice
from .tokens import Keys, KVCache, Rounding, Tokens, prepare_tokens

SharedKV = tuple[Tensor | SharedLatent | None, Tensor | None]
"""The keys and the values that a layer attends to, None for what it computes itself; or a latent and None."""
Shared = dict[tuple[str, int], Tensor | SharedLatent | None]
"""What owners gave to layers that are still to come, by kind and owner."""


class Decoder(nn.Module):
    """Token ids to final hidden states; `head` turns those into logits.

    Keys are rotated before they are cached and shared, so training, scoring and decoding with a cache see the same
    keys. `keys="unrotated"` is for the published MLKV checkpoints alone (arXiv 2406.09297): their readers attend to
    their owner's keys as they are before rotation, and only the owner itself to rotated ones.
    """

    def __init__(self, shape: DecoderShape, layout: KVLayout, keys: Keys = "rotated") -> None:
        super().__init__()
        check_choice("keys", keys, get_args(Keys))
        _check_fit(shape, layout, keys)
        self.shape, self.layout, self.keys = shape, layout, keys
        self.embed: nn.Embedding = Embedding(shape)
        if shape.positions == "learned":
            self.positions = nn.Embedding(shape.context + shape.position_offset, shape.width)
        self.blocks = nn.ModuleList(
            Block(shape, layout, i, _attention(shape, layout, i, keys), MLP(shape)) for i in range(shape.layers)
        )
        self.norm = norm_of(shape)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        if shape.tied:
            self.head.weight = self.embed.weight
        self.gradient_checkpointing = False
        self.rounding: Rounding | None = None
        """Attention reads what this makes of keys and values, with a cache and without: scores then are those of a
        quantised cache, however a text is cut into passes."""
        self.documents_by_kernel = False
        """Documents that are packed into rows are given to a kernel that takes them: see `attend_in_documents`."""

    def forward(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
        hidden_states: list[Tensor] | None = None,
        attentions: list[Tensor] | None = None,
        *,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Hidden states `[B, T, D]` after the last norm.

        inputs: token ids `[B, T]`, or what takes the place of their embeddings, `[B, T, D]`.
        mask: `[B, past + T]` (0 at padding), or a complete `[B, 1, T, S]` one.
        positions_BT: default: the number of real tokens before each token.
        hidden_states: if given, what comes before each layer and after the last norm is appended, each `[B, T, D]`.
        attentions: if given, each layer's attention weights `[B, H, T, S]` are appended.
        documents: where those begin that rows are packed of (`Documents.starts`); each attends to itself alone.
        """
        by_kernel = self.documents_by_kernel and attentions is None
        packed = None if documents is None else Documents(documents, by_kernel)
        tokens = prepare_tokens(
            self.shape, self.layout, self.keys, inputs, mask, positions_BT, cache, self.rounding, attentions, packed
        )
        x_BTD = self.embed(inputs) if inputs.dim() == 2 else inputs
        if self.shape.positions == "learned":
            x_BTD = x_BTD + self.positions(tokens[0].positions + self.shape.position_offset)
        x_BTD = self.norm(self._run_layers(x_BTD, tokens, hidden_states))
        if hidden_states is not None:
            hidden_states.append(x_BTD)
        return x_BTD

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        return capped(self.head(hidden_BTD), self.shape.logit_cap)

    def _run_layers(self, x_BTD: Tensor, tokens: list[Tokens], hidden_states: list[Tensor] | None) -> Tensor:
        shared: Shared = {}
        for layer in range(self.shape.layers):
            if hidden_states is not None:
                hidden_states.append(x_BTD)
            x_BTD = self._run_layer(layer, x_BTD, shared, tokens[layer])
        return x_BTD

    def _run_layer(self, layer: int, x_BTD: Tensor, shared: Shared, tokens: Tokens) -> Tensor:
        """Its output. What it shares goes into `shared`, and leaves it after the last use: a quantised cache made it
        for this pass alone. So nothing else may hold it while the next layer runs."""
        sources = {kind: self.layout.part(kind).kv_source_layers for kind in KINDS}
        places = [(kind, sources[kind][layer]) for kind in KINDS]
        given = tuple(shared.get(place) for place in places)
        x_BTD, used = self._run_block(self.blocks[layer], x_BTD, given, tokens)
        for (kind, source), part in zip(places, used, strict=True):
            if source in sources[kind][layer + 1 :]:
                shared[kind, source] = part
            else:
                shared.pop((kind, source), None)
        return x_BTD

    def _run_block(self, block: nn.Module, *inputs: object) -> tuple[Tensor, SharedKV]:
        # Reentrant checkpointing gives wrong gradients where a layer's keys and values are used outside of it (relative
        # error 0.9, measured; no error is raised).
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class Block(nn.Module):
    """Norm, attention, norm, MLP: one after the other, or both from the same input (`parallel_residual`). Norms may
    also, or only, stand behind attention and MLP (`norm_place`)."""

    def __init__(self, shape: DecoderShape, layout: KVLayout, layer: int, attention: Attention, mlp: MLP) -> None:
        super().__init__()
        self.parallel = shape.parallel_residual

        def norm(*places: str) -> nn.Module:
            return norm_of(shape) if shape.norm_place in places else nn.Identity()

        self.attention_norm = norm("before", "around")
        if shape.has_kv_norms(layout) and layer in layout.owners:
            self.kv_norm = norm_of(shape)
        self.attention = attention
        self.attention_out_norm = norm("around", "after")
        self.mlp_norm = norm("before", "around")
        self.mlp = mlp
        self.mlp_out_norm = norm("around", "after")

    def forward(self, x_BTD: Tensor, shared_kv: SharedKV, tokens: Tokens) -> tuple[Tensor, SharedKV]:
        q_input_BTD = self.attention_norm(x_BTD)
        kv_input_BTD = self.kv_norm(x_BTD) if hasattr(self, "kv_norm") else q_input_BTD
        attended_BTD, shared_kv = self.attention(q_input_BTD, kv_input_BTD, shared_kv, tokens)
        between_BTD = x_BTD + self.attention_out_norm(attended_BTD)
        mlp_BTD = self.mlp(self.mlp_norm(x_BTD if self.parallel else between_BTD))
        return between_BTD + self.mlp_out_norm(mlp_BTD), shared_kv


def _attention(shape: DecoderShape, layout: KVLayout, layer: int, keys: Keys) -> Attention:
    if layout.latent is None:
        return Attention(shape, layout, layer, keys)
    return LatentAttention(shape, layout, layer)  # type: ignore[return-value]  # has the same attributes for others


def _check_fit(shape: DecoderShape, layout: KVLayout, keys: Keys) -> None:
    if (layout.layers, layout.heads) != (shape.layers, shape.heads):
        raise ValueError(
            f"layout has {layout.layers} layers of {layout.heads} heads, the decoder {shape.layers} of {shape.heads}"
        )
    if keys == "unrotated" and not shape.one_rotation:
        raise ValueError("keys = unrotated: all layers must rotate alike")
    if layout.latent:
        shape.check_latent(layout.latent)
        if keys == "unrotated":
            raise ValueError("keys = unrotated: a latent needs rotated ones")
    if layout.apart and keys == "unrotated":
        raise ValueError("keys = unrotated: keys and values that are apart need rotated ones")
    if layout.reads_above and keys == "unrotated":
        raise ValueError("keys = unrotated: layers that read from above need rotated ones")
