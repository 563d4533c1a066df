"""The decoder's shape and the arithmetic on it: parameters and widened MLPs. No torch: plans cost variants with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from math import prod
from typing import Annotated, Any, Literal, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

from annotated_types import Ge, Gt, Le

from .layout import KINDS, KVLayout, Latent, mha

INT64, INT32 = 2**63 - 1, 2**31 - 1
FLOAT32 = 3.4e38
"""Above this, float32 has only infinity."""
Positive = Annotated[int, Gt(0), Le(INT64)]
Dimension = Annotated[int, Gt(0), Le(INT32)]
"""Of a tensor: matrix products (BLAS) count rows and columns in 32 bits."""
Count = Annotated[int, Gt(0), Le(4096)]
"""Of layers, or of heads in a layer: plans write them out one by one. The deepest published decoder has 1,000 layers
(arXiv 2203.00555)."""
Real = Annotated[float, Gt(0), Le(FLOAT32)]
Cap = Annotated[float, Ge(0), Le(FLOAT32)]
Layers = tuple[Annotated[int, Ge(0)], ...]
Rotation = Literal["none", "global", "local"]


def check_choice(field: str, value: object, valid: Iterable[object]) -> None:
    """Raises ValueError unless `value` is one of the valid ones. Without it an unknown name would take the last branch
    of an `if`."""
    if value not in (choices := list(valid)):
        raise ValueError(f"{field} = {value}: must be one of {', '.join(map(str, choices))}")


@runtime_checkable
class Names(Protocol):
    """What may mark a field, as in `Annotated[str, names]`: the names that are valid in it."""

    def __contains__(self, name: object, /) -> bool: ...

    def valid(self) -> Iterable[str]: ...


class Choices:
    """A dataclass whose fields with choices (Literal, or marked with Names) hold one of them, whoever makes it. Raises
    ValueError like `check_choice`."""

    def __post_init__(self) -> None:
        schema: Any = type(self)
        for name, valid in _choices(schema).items():
            check_choice(name, getattr(self, name), valid)
        for name, names in _names(schema).items():
            if (value := getattr(self, name)) not in names:
                check_choice(name, value, names.valid())


@cache
def _choices(schema: type[Any]) -> dict[str, tuple[Any, ...]]:
    hints = get_type_hints(schema)
    return {f.name: get_args(hints[f.name]) for f in fields(schema) if get_origin(hints[f.name]) is Literal}


@cache
def _names(schema: type[Any]) -> dict[str, Names]:
    hints = get_type_hints(schema, include_extras=True)
    marks = ((f.name, mark) for f in fields(schema) for mark in getattr(hints[f.name], "__metadata__", ()))
    return {name: mark for name, mark in marks if isinstance(mark, Names)}


def added(default: Any) -> Any:
    """A field that was added after step ids had been given out. At its default it is left out of the hash, so that the
    older ids keep their meaning."""
    return field(default=default, metadata={"neutral": default})


@dataclass(frozen=True)
class DecoderShape(Choices):
    """Everything that decides the decoder's tensors but the KV layout. `heads · head_dim` need not equal `width`."""

    vocab_size: Dimension
    width: Dimension
    layers: Count
    heads: Count
    head_dim: Dimension
    mlp_width: Dimension
    context: Dimension
    norm: Literal["layernorm", "rmsnorm", "rmsnorm_offset"] = "layernorm"
    """`rmsnorm_offset` multiplies by 1 + its weight, which is born as 0 (Gemma)."""
    norm_eps: Real = 1e-5
    activation: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    gated_mlp: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    parallel_residual: bool = True
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_fraction: Annotated[float, Gt(0), Le(1)] = 0.25
    rotary_base: Annotated[float, Ge(1e-20), Le(FLOAT32)] = 10_000.0
    """Below 1e-20 the angle of a late position is infinite in float32."""
    position_offset: Annotated[int, Ge(0), Le(INT32)] = 0
    tied: bool = False
    init_std: Annotated[float, Gt(0), Le(1e6)] = 0.02
    """A normal distribution draws up to ten times as much, and logits are products of such weights."""
    kv_norm: bool = added(False)
    """Where layers share, an owner computes its keys and values from its input under a norm of their own; the queries
    have another (arXiv 2405.12981)."""
    norm_place: Literal["before", "around", "after"] = added("before")
    """Of attention and of the MLP, the input is normed, or input and output (Gemma 2), or the output alone (OLMo 2)."""
    qk_norm: Literal["none", "head", "width"] = added("none")
    """Queries and keys have RMS norms before they are rotated: each head by itself with weights that the heads of a
    layer share, or all heads of a layer together."""
    output_bias: bool = added(True)
    """Where attention has biases, whether its output projection has one too (not in Qwen2)."""
    attention_scalar: Annotated[int, Ge(0), Le(INT64)] = added(0)
    """Attention logits are divided by its square root; 0: by that of the head width."""
    attention_cap: Cap = added(0.0)
    """Attention logits `x` become `cap · tanh(x / cap)`; 0: they stay."""
    logit_cap: Cap = added(0.0)
    """The same for the output logits."""
    embedding_scale: Real = added(1.0)
    """Embeddings are multiplied by it."""
    window: Annotated[int, Ge(0), Le(INT64)] = added(0)
    """Tokens that a query of a local layer attends to, the newest of which is its own; 0: no layer is local."""
    local_layers: Layers = added(())
    local_rotary_base: Annotated[float, Ge(0), Le(FLOAT32)] = added(0.0)
    """The base of local layers, which then are not scaled; 0: that of all others, and scaled like them."""
    unrotated_layers: Layers = added(())
    """Layers whose queries and keys know no position (arXiv 2305.19466)."""
    rotary_scaling: Literal["none", "linear", "llama3", "yarn"] = added("none")
    """How rotation is slowed for contexts longer than those of the first training (mlkv/positions.py)."""
    rotary_factor: Real = added(1.0)
    """By how much at most."""
    rotary_context: Annotated[int, Ge(0), Le(INT64)] = added(0)
    """Tokens of the first training's contexts; for llama3 and yarn."""
    rotary_low: Real = added(1.0)
    """Planes that turn less often than this in that context are slowed by the whole factor; for llama3 and yarn."""
    rotary_high: Real = added(4.0)
    """Planes that turn more often than this in that context are not slowed; for llama3 and yarn."""
    rotary_truncate: bool = added(True)
    """Whether yarn rounds the planes to which those numbers belong, outwards."""
    rotary_size: Real = added(1.0)
    """Queries and keys are multiplied by it when they are rotated (yarn's attention factor)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("local_layers", "unrotated_layers"):
            layers = tuple(getattr(self, name))  # JSON has lists
            object.__setattr__(self, name, layers)
            if list(layers) != sorted({*layers}) or any(not 0 <= layer < self.layers for layer in layers):
                raise ValueError(f"{name} = {[*layers]}: must be layers in ascending order, 0 to {self.layers - 1}")
        if bool(self.window) != bool(self.local_layers):
            raise ValueError(f"window = {self.window}: is of local_layers; set both, or none")
        if self.rotary_scaling in ("llama3", "yarn") and not (
            self.rotary_context and self.rotary_low < self.rotary_high
        ):
            raise ValueError(
                f"rotary_scaling = {self.rotary_scaling}: needs rotary_context, and rotary_low < rotary_high"
            )

    @property
    def one_rotation(self) -> bool:
        """Whether all layers rotate alike."""
        return not self.unrotated_layers and not (self.local_layers and self.local_rotary_base)

    def rotation_of(self, layer: int) -> Rotation:
        """How the keys of a layer are rotated, and the queries that read them: an owner's readers follow it, whatever
        they do in a model without sharing, as logits depend on how far apart two tokens are only if both turn alike."""
        if self.positions != "rotary" or layer in self.unrotated_layers:
            return "none"
        return "local" if self.local_rotary_base and layer in self.local_layers else "global"

    def window_of(self, layer: int) -> int:
        """Tokens that a query of the layer attends to; 0: all before it."""
        return self.window if layer in self.local_layers else 0

    @property
    def attention_factor(self) -> float:
        """By which products of queries and keys are multiplied."""
        return float((self.attention_scalar or self.head_dim) ** -0.5)

    def weights(self, layout: KVLayout) -> dict[str, tuple[int, ...]]:
        """Every weight of a decoder of this shape with `layout`, in the order of its state dict, and its shape."""
        found: dict[str, tuple[int, ...]] = {"embed.weight": (self.vocab_size, self.width)}

        def linear(name: str, inputs: int, outputs: int, bias: bool) -> None:
            found.update({f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {}))

        def norm(name: str) -> None:
            found[f"{name}.weight"] = (self.width,)
            if self.norm == "layernorm":
                found[f"{name}.bias"] = (self.width,)

        def qk_norm(name: str, heads: int) -> None:
            if self.qk_norm != "none":
                found[f"{name}.weight"] = (self.head_dim * (heads if self.qk_norm == "width" else 1),)

        if self.positions == "learned":
            found["positions.weight"] = (self.context + self.position_offset, self.width)
        for layer in range(self.layers):
            block, query = f"blocks.{layer}", self.heads * self.head_dim
            if self.norm_place != "after":
                norm(f"{block}.attention_norm")
            if layer in layout.owners and self.has_kv_norms(layout):
                norm(f"{block}.kv_norm")
            linear(f"{block}.attention.q", self.width, query, self.attention_bias)
            if layer in layout.owners:
                for part, (inputs, outputs, bias) in self.kv_projections(layout, layer).items():
                    linear(f"{block}.attention.{part}", inputs, outputs, bias)
                if layer in layout.keys.owners:
                    qk_norm(f"{block}.attention.k_norm", layout.keys.heads_of(layer))
                if layout.latent and self.chooses_planes(layout.latent):
                    found[f"{block}.attention.planes"] = layout.latent.planes_size(layout.heads_of(layer))
            qk_norm(f"{block}.attention.q_norm", self.heads)
            linear(f"{block}.attention.o", query, self.width, self.attention_bias and self.output_bias)
            if self.norm_place != "before":
                norm(f"{block}.attention_out_norm")
            if self.norm_place != "after":
                norm(f"{block}.mlp_norm")
            for part in ("gate", "up") if self.gated_mlp else ("up",):
                linear(f"{block}.mlp.{part}", self.width, self.mlp_width, self.mlp_bias)
            linear(f"{block}.mlp.down", self.mlp_width, self.width, self.mlp_bias)
            if self.norm_place != "before":
                norm(f"{block}.mlp_out_norm")
        norm("norm")
        return found | {"head.weight": (self.vocab_size, self.width)}

    @property
    def rotated_dims(self) -> int:
        """How many dimensions of a head its position rotates; none with learned positions."""
        return int(self.head_dim * self.rotary_fraction) // 2 * 2 if self.positions == "rotary" else 0

    def parameters(self, layout: KVLayout, mlp_width: int | None = None) -> int:
        """Parameter count of a decoder of this shape with `layout`, MLPs `mlp_width` wide if given."""
        shape = replace(self, mlp_width=mlp_width) if mlp_width else self
        sizes = {name: prod(size) for name, size in shape.weights(layout).items() if not name.endswith(".planes")}
        return sum(sizes.values()) - (sizes["head.weight"] if self.tied else 0)

    def kv_projections(self, layout: KVLayout, owner: int) -> dict[str, tuple[int, int, bool]]:
        """The linear maps by which an owner computes what it owns of keys and values: name → inputs, outputs, whether
        it has a bias.

        With a latent: `k` gives the rotated part of the keys, `latent` the vector that is cached, and `k_up` and `v_up`
        the rest of the keys and the values from that. A constant in `k_up` would add the same to all logits of a query,
        so it has no bias; `v_up` has one, and so `latent` needs none.
        """
        if layout.latent is None:
            sizes = zip(KINDS, layout.cached_sizes(owner, self.head_dim), strict=True)
            return {kind: (self.width, heads * width, self.attention_bias) for kind, (heads, width) in sizes if heads}
        heads, latent = layout.heads_of(owner), layout.latent
        rank, rest = layout.rank_of(owner), self.head_dim - latent.rotary_dims
        projections = {
            "k": (self.width, latent.rotary_width(heads), self.attention_bias),
            "latent": (self.width, rank, False),
            "k_up": (rank, heads * rest, False),
            "v_up": (rank, heads * self.head_dim, True),
        }
        return {name: sizes for name, sizes in projections.items() if sizes[1]}

    def chooses_planes(self, latent: Latent) -> bool:
        """Whether owners keep the rotation in some planes of a head and drop it in others."""
        return 0 < latent.rotary_dims < self.rotated_dims

    def kv_parameters(self, layout: KVLayout) -> int:
        """Parameters of all owners' maps to keys and values."""
        maps = (each for owner in layout.owners for each in self.kv_projections(layout, owner).values())
        return sum(inputs * outputs + outputs * bias for inputs, outputs, bias in maps)

    def check_latent(self, latent: Latent) -> None:
        """Raises ValueError where it keeps more rotated dimensions than a head has, and where keys are more than a
        rotated linear map of a layer's input."""
        if latent.rotary_dims > self.rotated_dims:
            raise ValueError(f"latent.rotary_dims = {latent.rotary_dims}: a head has {self.rotated_dims} that rotate")
        if self.qk_norm != "none":
            raise ValueError(f"latent: keys have a norm (qk_norm = {self.qk_norm}), so they are not a map of a latent")
        if not self.one_rotation:
            raise ValueError("latent: layers are rotated in different ways, and a latent has one for all of them")

    def keeps_rotation(self, layout: KVLayout) -> bool:
        """Whether every head keeps all of its own rotated part: without that, no rank gives back the function of a
        model without a latent."""
        latent = layout.latent
        whole = latent is None or latent.rotary_dims == self.rotated_dims
        return whole and not (latent and latent.shared and self.rotated_dims and max(layout.kv_heads) > 1)

    def full_rank(self, layout: KVLayout, owner: int, rotary_dims: int) -> int:
        """The width from which a latent of an owner can hold all that its keys and values hold."""
        return min(self.width, layout.heads_of(owner) * (2 * self.head_dim - rotary_dims))

    def has_kv_norms(self, layout: KVLayout) -> bool:
        """Whether the owners of `layout` have a separate norm for keys and values."""
        return self.kv_norm and any(part.kv_layers < layout.layers for part in (layout.keys, layout.values))

    def widened_mlp(self, layout: KVLayout, source: KVLayout | None = None) -> int:
        """MLP width once the parameters of the KV heads dropped from `source` (MHA unless given) are spread over all
        MLPs (arXiv 2406.09297's rule)."""
        had = self.kv_parameters(source or mha(self.layers, self.heads))
        lost = max(0, had - self.kv_parameters(layout)) // self.layers  # a latent of high rank has more than MHA
        matrices = 3 if self.gated_mlp else 2
        return self.mlp_width + round(lost / self.width) // matrices

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it. Fields that were added later are left out at their neutral value, but for `kv_norm`."""
        later = {f.name: f.metadata["neutral"] for f in fields(self) if "neutral" in f.metadata and f.name != "kv_norm"}
        values = {name: list(each) if isinstance(each, tuple) else each for name, each in asdict(self).items()}
        return {name: each for name, each in values.items() if name not in later or getattr(self, name) != later[name]}
