"""What a forward pass keeps for the backward pass, in bytes, by going through the decoder's parts without computing.

After Korthikanti et al. (arXiv 2205.05198, section 4), but for this decoder: every operation says which tensors its
gradient needs, and a tensor counts once however many operations keep it. A test holds it to the bytes that torch keeps
(tests/mlkv/test_memory.py). Needs no torch: plans count with it.

Legend: `B` sequences, `T` tokens, `N = B · T`, `D` width, `F` MLP width, `H` query heads, `K` head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..layout import KINDS, KVLayout
from ..shape import DecoderShape
from .packing import takes_documents

FP32, BF16 = 4, 2


@dataclass(eq=False)
class Value:
    """A tensor: how many numbers, of how many bytes, and whether a gradient flows back into it."""

    numbers: int
    size: int
    grad: bool

    @property
    def bytes(self) -> int:
        return self.numbers * self.size


@dataclass
class Tape:
    """Tensors that are kept. `copies`: the bf16 copies of weights among them."""

    held: dict[int, Value] = field(default_factory=dict)
    copies: int = 0

    def keep(self, *values: Value) -> None:
        self.held |= {id(value): value for value in values}

    @property
    def bytes(self) -> int:
        return sum(value.bytes for value in self.held.values())


@dataclass(frozen=True)
class Body:
    """Bytes that a pass through all layers keeps; `again` of the largest layer that is computed again. `copies`: of
    weights in bf16, which are in no other number."""

    kept: int
    copies: int
    again: int
    again_copies: int


@dataclass(frozen=True)
class Pass:
    """One forward pass over `batch` rows of `length` tokens.

    trained: whether the weight of this name has a gradient. rank_of: the rank of a module's adapter, 0 for none.
    compute: bytes of a number in matrix products; stream: of the hidden states between layers.
    copies: whether products in bf16 keep copies of their weights (autocast; not where FSDP gathers them in bf16).
    fused: whether RMS norms are one kernel (CUDA); else they keep what each of their operations needs.
    products: whether attention is two matrix products, which keep its weights.
    lean: whether those weights and what comes out of an MLP's activation are computed again (mlkv/train/lean.py).
    apart: whether documents in a row are, so that each row has positions and a mask of its own.
    """

    shape: DecoderShape
    layout: KVLayout
    batch: int
    length: int
    trained: Callable[[str], bool]
    rank_of: Callable[[str], int]
    compute: int = FP32
    stream: int = FP32
    copies: bool = True
    fused: bool = True
    products: bool = False
    lean: bool = False
    apart: bool = False

    @property
    def masks(self) -> int:
        """Masks, and lists of positions, that differ."""
        return self.batch if self.apart else 1

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def body(self, checkpointing: bool = False) -> Body:
        """Everything below the head. Where layers are checkpointed, only what goes into each is kept, and one layer at
        a time is computed again."""
        tape, again, layout = Tape(), [Tape()], self.layout
        scaled = self.shape.embedding_scale != 1.0
        x = Value(self.tokens * self.shape.width, self.stream, self.trained("embed.weight"))
        x.grad |= self.shape.positions == "learned" and self.trained("positions.weight")
        if scaled and x.grad:
            tape.keep(Value(1, FP32, False))
        self._angles(tape)
        if self.shape.positions == "learned" and self.trained("positions.weight"):
            tape.keep(Value(self.masks * self.length, 8, False))
        if checkpointing:
            tape.keep(Value(self.masks * self.length, 8, False))  # positions
            windows = {self.shape.window_of(layer) for layer in range(self.shape.layers)}
            masked = [window for window in windows if self._masked(window)]
            tape.keep(*(Value(self.masks * self.length**2, 1, False) for _ in masked))
        shared: dict[tuple[str, int], Value] = {}
        for segment in layout.segments:
            # Layers that read from above run several times, the last of them with gradients (mlkv/above.py).
            times, begin = (layout.backward_passes or 1 if len(segment) > 1 else 1), x
            for _ in range(times):
                x = begin
                for layer in segment:
                    self._read_above(tape, layer, shared)
                    own = Tape() if checkpointing else tape
                    if checkpointing:
                        places = [(kind, layout.part(kind).kv_source_layers[layer]) for kind in KINDS]
                        tape.keep(x, *(shared[place] for place in places if place in shared))
                    x = self._block(own, layer, x, shared)
                    if checkpointing:
                        again.append(own)
        self._norm(tape, x, self.shape.width, self.tokens, "norm")
        largest = max(again, key=lambda own: own.bytes)
        return Body(tape.bytes - tape.copies, tape.copies, largest.bytes - largest.copies, largest.copies)

    def _read_above(self, tape: Tape, layer: int, shared: dict[tuple[str, int], Value]) -> None:
        """A copy of the keys and values of a layer above, from the pass before, behind those of no token."""
        for kind in KINDS:
            part = self.layout.part(kind)
            if (source := part.kv_source_layers[layer]) > layer:
                had = shared.get((kind, source))
                numbers = self.batch * (self.length + 1) * part.heads_of(layer) * self.shape.head_dim
                shared[kind, source] = Value(numbers, had.size if had else self.stream, bool(had and had.grad))
                tape.keep(Value(self.masks * self.length * (self.length + 1), self.compute, False))

    def backward_of_layer(self) -> int:
        """Bytes of the gradients of a layer's widest activations, which are there at once."""
        return self.tokens * self.shape.mlp_width * (3 if self.shape.gated_mlp else 2) * self.compute

    def head(self) -> int:
        """Bytes kept by the head and the loss, the logarithms of the probabilities among them."""
        shape, rows = self.shape, self.batch * (self.length - 1)
        tape = Tape()
        hidden = Value(rows * shape.width, self.stream, True)
        tied = "embed.weight" if shape.tied else "head.weight"
        logits = self._linear(tape, hidden, rows, shape.width, shape.vocab_size, tied, "head")
        if self.trained(tied) and self.compute == hidden.size and self.batch > 1:
            tape.keep(hidden)  # a copy: the last token of each row is left out
        if shape.logit_cap:
            tape.keep(Value(logits.numbers, logits.size, True))
        tape.keep(Value(logits.numbers, FP32, True), Value(rows, 8, False), Value(1, FP32, False))
        return tape.bytes

    def chunked_head(self, chunk: int, rows: int) -> int:
        """The same where logits exist for `chunk` tokens at a time: hidden states as products take them and their
        gradients, the head's weight as products take it, a chunk's logits, which become their gradient, and for `rows`
        of it in float32 logits, probabilities and what comes of them."""
        shape, tokens = self.shape, self.batch * (self.length - 1)
        head = shape.vocab_size * shape.width * (self.compute if self.compute != FP32 else 0)
        hidden = tokens * shape.width * (self.compute + FP32)
        numbers = min(chunk, tokens) * self.compute + min(rows, tokens) * 3 * FP32
        return hidden + head + numbers * shape.vocab_size

    def _angles(self, tape: Tape) -> None:
        """Cosines and sines, once for each kind of layers."""
        shape = self.shape
        kinds = {(shape.window_of(i), shape.rotation_of(owner)) for i, owner in enumerate(self.layout.kv_source_layers)}
        rotating = [rotation for _, rotation in kinds if rotation != "none"]
        tape.keep(*(Value(self.masks * self.length * shape.rotated_dims, FP32, False) for _ in rotating))

    def _masked(self, window: int) -> bool:
        """Whether attention of a layer with this window takes a mask; where documents are apart, it does but for a
        kernel on GPUs that takes them as they are."""
        if 0 < window < self.length:
            return True
        kernel = self.fused and takes_documents(self.shape, self.layout, bf16=self.compute == BF16)
        return self.apart and not kernel

    def _block(self, tape: Tape, layer: int, x: Value, shared: dict[tuple[str, int], Value]) -> Value:
        shape, width, name = self.shape, self.shape.width, f"blocks.{layer}"

        def norm(value: Value, part: str, *places: str) -> Value:
            if shape.norm_place not in places:
                return value
            return self._norm(tape, value, width, self.tokens, f"{name}.{part}")

        q_input = norm(x, "attention_norm", "before", "around")
        kv_input = q_input
        if layer in self.layout.owners and shape.has_kv_norms(self.layout):
            kv_input = self._norm(tape, x, width, self.tokens, f"{name}.kv_norm")
        attention = self._latent_attention if self.layout.latent else self._attention
        attended = attention(tape, layer, q_input, kv_input, shared)
        attended = norm(attended, "attention_out_norm", "around", "after")
        between = Value(x.numbers, self.stream, x.grad or attended.grad)
        out = self._mlp(tape, name, norm(x if shape.parallel_residual else between, "mlp_norm", "before", "around"))
        out = norm(out, "mlp_out_norm", "around", "after")
        return Value(x.numbers, self.stream, between.grad or out.grad)

    def _attention(
        self, tape: Tape, layer: int, q_input: Value, kv_input: Value, shared: dict[tuple[str, int], Value]
    ) -> Value:
        shape, name = self.shape, f"blocks.{layer}.attention"
        q = self._heads(tape, q_input, shape.heads, f"{name}.q", f"{name}.q_norm")
        parts = []
        for kind in KINDS:
            part = self.layout.part(kind)
            place = (kind, part.kv_source_layers[layer])
            if layer in part.owners:
                norm = f"{name}.k_norm" if kind == "k" else ""
                shared[place] = self._heads(tape, kv_input, part.heads_of(layer), f"{name}.{kind}", norm)
            parts.append(shared[place])
        out = self._attend(tape, layer, q, *parts)
        return self._linear(tape, out, self.tokens, shape.heads * shape.head_dim, shape.width, f"{name}.o.weight")

    def _heads(self, tape: Tape, x: Value, heads: int, module: str, norm: str) -> Value:
        """Queries, keys or values of so many heads: projected, normed where they are, and rotated."""
        shape, width = self.shape, heads * self.shape.head_dim
        flat = self._linear(tape, x, self.tokens, shape.width, width, f"{module}.weight")
        if norm and shape.qk_norm != "none":
            rows = self.tokens * (heads if shape.qk_norm == "head" else 1)
            flat = self._norm(tape, flat, self.tokens * width // rows, rows, norm, kind="rmsnorm")
        return Value(flat.numbers, flat.size, flat.grad)

    def _attend(self, tape: Tape, layer: int, q: Value, k: Value, v: Value) -> Value:
        """No kernel but that of capped logits keeps the weights; the others keep a number per query and head."""
        shape, heads = self.shape, self.shape.heads
        q, k, v = (self._rounded(value) for value in (q, k, v))
        out = Value(q.numbers, self.compute, q.grad or k.grad or v.grad)
        square, window = self.length**2, shape.window_of(layer)
        if not out.grad:
            return out
        if shape.attention_cap:
            spread = [Value(q.numbers, self.compute, True) for _ in "kv"]  # a KV head's, once for each query head
            weights = self.batch * heads * square
            tape.keep(q, spread[1], Value(weights, self.compute, True), Value(weights, FP32, True))
            tape.keep(Value(self.masks * square, 1, False), *(spread[:1] if q.grad else ()))
            if self.compute != FP32:
                tape.keep(Value(weights, self.compute, True))
            return out
        if k.numbers != v.numbers:  # kernels take one head count for both
            most = max(k.numbers, v.numbers)
            k, v = (Value(most, value.size, value.grad) for value in (k, v))
        if self.products and not self._masked(window):
            tape.keep(q, k, v)
            if not self.lean:
                tape.keep(Value(self.batch * heads * square, self.compute, True))
            return out
        tape.keep(q, k, v, out, Value(self.tokens * heads, FP32, False))
        if self._masked(window):
            tape.keep(Value(self.masks * square, self.compute, False))
        # The heads of a token lie side by side in what comes out of a CUDA kernel, and on a CPU where queries did.
        rotates = shape.rotation_of(self.layout.kv_source_layers[layer]) != "none"
        return Value(out.numbers, out.size, out.grad) if rotates and not self.fused else out

    def _latent_attention(
        self, tape: Tape, layer: int, q_input: Value, kv_input: Value, shared: dict[tuple[str, int], Value]
    ) -> Value:
        """Queries in the latent space, one head of keys that all of them read, and what comes out of it."""
        shape, layout, name = self.shape, self.layout, f"blocks.{layer}.attention"
        assert layout.latent
        rank, tokens, owner = layout.rank_of(layer), self.tokens, layout.kv_source_layers[layer]
        wide = layout.latent.rotary_width(layout.heads_of(layer)) + rank
        rest = shape.head_dim - layout.latent.rotary_dims
        q = self._linear(tape, q_input, tokens, shape.width, shape.heads * shape.head_dim, f"{name}.q.weight")
        if owner == layer:
            self._linear(tape, kv_input, tokens, shape.width, rank, f"{name}.latent.weight")
            if layout.latent.rotary_dims:
                self._linear(tape, kv_input, tokens, shape.width, wide - rank, f"{name}.k.weight")
            shared["k", owner] = Value(tokens * wide, self.compute, True)
            shared["v", owner] = Value(layout.heads_of(layer) * rank * (shape.head_dim + rest), FP32, False)  # its maps
        queries, keys = Value(tokens * shape.heads * wide, self.compute, True), shared["k", owner]
        found, one = Value(tokens * shape.heads * rank, self.compute, True), Value(tokens * shape.heads, FP32, False)
        # Each query head multiplies with maps of its own, and a row of the batch at a time.
        maps = self.batch * shape.heads * rank
        tape.keep(Value(maps * rest, self.compute, True), Value(maps * shape.head_dim, self.compute, True))
        if self.trained(f"blocks.{owner}.attention.k_up.weight"):
            tape.keep(q if rest == shape.head_dim else Value(tokens * shape.heads * rest, self.compute, True))
        tape.keep(queries, found)
        if self.fused or wide == rank:
            tape.keep(keys, one)
        else:  # keys are wider than values, so no kernel on a CPU takes them
            spread = Value(tokens * shape.heads * wide, self.compute, True)
            weights = Value(self.batch * shape.heads * self.length**2, self.compute, True)
            tape.keep(spread, weights, Value(found.numbers, self.compute, True))
        out = Value(tokens * shape.heads * shape.head_dim, self.compute, True)
        return self._linear(tape, out, tokens, shape.heads * shape.head_dim, shape.width, f"{name}.o.weight")

    def _mlp(self, tape: Tape, block: str, x: Value) -> Value:
        shape, width, tokens, name = self.shape, self.shape.width, self.tokens, f"{block}.mlp"
        up = self._linear(tape, x, tokens, width, shape.mlp_width, f"{name}.up.weight")
        gate = up
        if shape.gated_mlp:
            gate = self._linear(tape, x, tokens, width, shape.mlp_width, f"{name}.gate.weight")
        active = Value(up.numbers, self.compute, gate.grad)
        if gate.grad:
            tape.keep(active if shape.activation == "relu" else gate)
        if shape.gated_mlp:
            if gate.grad:
                tape.keep(up)
            if up.grad:
                tape.keep(active)
            active = Value(up.numbers, self.compute, gate.grad or up.grad)
        again = self.lean and shape.activation != "relu"
        return self._linear(tape, active, tokens, shape.mlp_width, width, f"{name}.down.weight", kept=not again)

    def _linear(
        self,
        tape: Tape,
        x: Value,
        rows: int,
        inputs: int,
        outputs: int,
        weight: str,
        module: str = "",
        kept: bool = True,
    ) -> Value:
        """A gradient of the weight needs the input, one of the input the weight."""
        trained, rank = self.trained(weight), self.rank_of(module or weight.removesuffix(".weight"))
        if trained and kept:
            tape.keep(self._rounded(x))
        if x.grad and self.compute != FP32 and self.copies:
            tape.keep(Value(inputs * outputs, self.compute, True))
            tape.copies += inputs * outputs * self.compute
        if rank:
            tape.keep(
                Value(rows * rank, self.compute, True), *([self._rounded(x)] if kept or self.compute != FP32 else [])
            )
            if self.compute != FP32:
                down = inputs if x.grad else 0
                tape.keep(Value((down + outputs) * rank, self.compute, True))
        return Value(rows * outputs, self.compute, x.grad or trained or bool(rank))

    def _norm(self, tape: Tape, x: Value, width: int, rows: int, name: str, kind: str = "") -> Value:
        trained, offset = self.trained(f"{name}.weight"), self.shape.norm == "rmsnorm_offset"
        kind = kind or ("layernorm" if self.shape.norm == "layernorm" else "rmsnorm")
        out = Value(x.numbers, x.size, x.grad or trained)
        if not out.grad:
            return out
        if kind == "layernorm":
            tape.keep(x, Value(2 * rows, FP32, False))
            return out
        whole = x if x.size == FP32 or (self.fused and not offset) else Value(x.numbers, FP32, x.grad)
        statistics = Value(rows, FP32, False)
        if x.grad or self.fused:
            tape.keep(whole, statistics)
        if trained and not self.fused:
            tape.keep(Value(x.numbers, FP32, True))
        if offset and x.grad:
            tape.keep(Value(width, FP32, True))  # 1 + the weight
        return out

    def _rounded(self, x: Value) -> Value:
        """`x` as matrix products take it. Each that does rounds it anew."""
        return x if x.size == self.compute else Value(x.numbers, self.compute, x.grad)
