"""The decoder as a transformers model: generate(), caches, save and load, AutoModel, and an export that needs no mlkv.

A saved checkpoint carries copies of this module and of those it imports, so `trust_remote_code=True` loads it where
mlkv is not installed. It therefore imports nothing of ours but `.model` and what that imports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from .above import decoder_of
from .buffers import with_room
from .layout import KVLayout, LatentFields, LayoutFields
from .shape import DecoderShape
from .tokens import Keys

_FOR_PEFT = ("hidden_size", "num_attention_heads", "num_key_value_heads")
"""Other names of what the config has, which peft reads from its dictionary alone; config.json does not repeat them."""


class MLKVConfig(PreTrainedConfig):
    """The fields of DecoderShape, and the layout in full: `kv_source_layers` per layer, `kv_heads` per owner, `latent`
    (the fields of layout.Latent) where owners cache one in place of keys and values, `value_source_layers` and
    `value_heads` where they are not those of the keys, and `forward_passes` and `backward_passes` where a layer reads
    from above."""

    model_type = "mlkv"
    has_no_defaults_at_init: ClassVar[bool] = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "width",
        "intermediate_size": "mlp_width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "max_position_embeddings": "context",
        "tie_word_embeddings": "tied",
    }

    def __init__(
        self,
        kv_source_layers: list[int] | None = None,
        kv_heads: list[int] | None = None,
        keys: Keys = "rotated",
        latent: LatentFields | None = None,
        value_source_layers: list[int] | None = None,
        value_heads: list[int] | None = None,
        forward_passes: int | None = None,
        backward_passes: int | None = None,
        **kwargs: Any,
    ) -> None:
        given = {field.name: kwargs.pop(field.name) for field in fields(DecoderShape) if field.name in kwargs}
        for name, value in DecoderShape(**given).as_dict().items():
            setattr(self, name, value)
        self.kv_source_layers = list(kv_source_layers or [])
        self.kv_heads = list(kv_heads or [])
        self.keys = keys
        # Other configs stay as they were.
        if latent:
            self.latent = dict(latent)
        if value_source_layers:
            self.value_source_layers = list(value_source_layers)
        if value_heads:
            self.value_heads = list(value_heads)
        if forward_passes is not None:
            self.forward_passes = forward_passes
        if backward_passes is not None:
            self.backward_passes = backward_passes
        super().__init__(**{name: value for name, value in kwargs.items() if name not in _FOR_PEFT})

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {name: getattr(self, name) for name in _FOR_PEFT if hasattr(self, name)}

    def to_diff_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_diff_dict().items() if name not in _FOR_PEFT}

    @property
    def shape(self) -> DecoderShape:
        return DecoderShape(**{f.name: getattr(self, f.name) for f in fields(DecoderShape) if hasattr(self, f.name)})

    @property
    def layout(self) -> KVLayout:
        given = {name: getattr(self, name) for name in LayoutFields.__annotations__ if hasattr(self, name)}
        return KVLayout.from_dict(cast("LayoutFields", given))

    @property
    def num_key_value_heads(self) -> int:
        """The most KV heads that an owner has: other software divides by this number. `kv_heads` has those of each."""
        return max([*self.kv_heads, *getattr(self, "value_heads", [])], default=0)

    @property
    def kv_sharing_modes(self) -> list[str | None]:
        """One entry per layer. transformers ≥ 5.23 allocates no cache for layers that say "reuse"; without it, a static
        cache would be allocated for all layers and sharing would save nothing."""
        held = {self.layout.cache_layer(owner) for owner in self.layout.owners}
        return [None if layer in held else "reuse" for layer in range(self.layers)]


def _check_heads(cache: DynamicCache, layout: KVLayout, head_dim: int) -> None:
    """Raises ValueError for a cache that another program filled with other heads than the owners have: peft's prefix
    tuning gives all layers equally many."""
    for owner in layout.owners:
        layer, sizes = cache.layers[layout.cache_layer(owner)], layout.cached_sizes(owner, head_dim)
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            continue
        (key_heads, _), (value_heads, _) = expected = sizes
        if key_heads != value_heads:  # then heads are side by side, and values alone in the place of keys
            wide = [heads * width for heads, width in sizes]
            expected = ((1, wide[0]), (1, wide[1])) if key_heads else ((1, wide[1]), (1, wide[0]))
        held = tuple((part.shape[1], part.shape[3]) for part in (layer.keys, layer.values))
        if held != expected:
            raise ValueError(
                f"past_key_values has {held[0][0]} heads, {held[0][1]} wide, at layer {owner}: the layout has "
                f"{key_heads} of keys and {value_heads} of values, {head_dim} wide; a prefix needs owners with "
                "equally many heads"
            )


class StoredGenerationConfig(GenerationConfig):
    """The defaults of generate() that a checkpoint came with, such as end tokens: written as they were read.

    A value that generate() ignores, such as a temperature without do_sample, is warned about when it is read. Several
    published checkpoints have one, and transformers 5.17 refuses to save it again; 5.23 refuses it only where it was
    changed.
    """

    def validate(self, strict: bool = False, **kwargs: Any) -> None:
        super().validate(strict=False, **kwargs)


class MLKVForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MLKVConfig
    base_model_prefix = "model"
    _tied_weights_keys = {"model.head.weight": "model.embed.weight"}  # noqa: RUF012 (declared so by transformers)
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    loss_only = False
    """Return the loss alone, so that a trainer neither stores nor gathers logits."""
    own_loss: Callable[..., Tensor] | None = None
    """A trainer's loss, in place of the cross-entropy of whole logits: from the decoder, its hidden states `[B, T, D]`,
    the labels and `num_items_in_batch`."""

    def __init__(self, config: MLKVConfig) -> None:
        super().__init__(config)
        self.model = decoder_of(config.shape, config.layout, config.keys)
        self.post_init()

    @classmethod
    def from_shape(
        cls,
        shape: DecoderShape,
        layout: KVLayout,
        *,
        seed: int,
        dtype: torch.dtype | None = None,
        keys: Keys = "rotated",
    ) -> MLKVForCausalLM:
        """A randomly initialised model; the same seed gives the same weights and leaves global random state alone."""
        config = MLKVConfig(**{**shape.as_dict(), **layout.as_dict()}, keys=keys)
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(seed)
            model = cls(config)
        if dtype is not None:
            nn.Module.to(model, dtype=dtype)
        return model

    @property
    def shape(self) -> DecoderShape:
        return self.model.shape

    @property
    def layout(self) -> KVLayout:
        return self.model.layout

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        loss_only: bool | None = None,
        return_dict: bool | None = None,
        documents: Tensor | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """`labels` are token ids like `input_ids` (the shift happens here; -100 is left out of the loss).

        The loss is the mean over labelled tokens. A trainer that accumulates gradients gives `num_items_in_batch`, the
        tokens of the whole batch, and the loss is their sum divided by that: a mean of means would weigh a short
        micro-batch as much as a long one.

        Hidden states `[B, T, D]` are the embeddings, what each layer but the last gives, and what the last norm gives;
        attentions `[B, H, T, S]` are one a layer. Where an argument is None, the config of the same name decides.

        documents: where those begin that rows are packed of (mlkv/packed.py). Each attends to itself alone, at
        positions of its own; a mask, positions or a cache beside it raise ValueError.
        """
        inputs = _only_one(input_ids, inputs_embeds)
        if documents is not None and use_cache is None:
            use_cache = False
        past_key_values = self._cache(past_key_values, use_cache, labels)
        hidden_states: list[Tensor] | None = [] if self._asked("output_hidden_states", output_hidden_states) else None
        attentions: list[Tensor] | None = [] if self._asked("output_attentions", output_attentions) else None
        given = (attention_mask, position_ids, past_key_values, hidden_states, attentions)
        hidden_BTD = self.model(inputs, *given, documents=documents)
        loss = None if labels is None else self._loss(hidden_BTD, labels, num_items_in_batch)
        only_loss = labels is not None and (self.loss_only if loss_only is None else loss_only)
        selected = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=None if only_loss else self.model.logits(hidden_BTD[:, selected]),
            past_key_values=None if only_loss else past_key_values,
            hidden_states=None if hidden_states is None else tuple(hidden_states),
            attentions=None if attentions is None else tuple(attentions),
        )
        return output if self._asked("return_dict", return_dict) else output.to_tuple()

    def _asked(self, name: str, given: bool | None) -> bool:
        return bool(getattr(self.config, name, False) if given is None else given)

    def _cache(self, given: Cache | None, use_cache: bool | None, labels: Tensor | None) -> Cache | None:
        """The cache that a pass writes to, if any; without `use_cache`, one that is scored or trained has none."""
        if self.model.gradient_checkpointing and self.training:
            # Layers are computed again for their gradients, and would write a second time.
            if given is not None and given.get_seq_length():
                raise ValueError("past_key_values has tokens: with gradient checkpointing there is no cache")
            return None
        if isinstance(given, DynamicCache) and given.get_seq_length():
            _check_heads(given, self.layout, self.shape.head_dim)
        if use_cache is None:
            use_cache = labels is None and not self.training and getattr(self.config, "use_cache", True)
        if given is None:
            return with_room(DynamicCache(config=self.config)) if use_cache else None
        return with_room(given)

    def _loss(self, hidden_BTD: Tensor, labels_BT: Tensor, num_items: Tensor | int | None) -> Tensor:
        if self.own_loss is not None:
            return self.own_loss(self.model, hidden_BTD, labels_BT, num_items)
        # In float32: from bf16 the loss itself would be rounded.
        logits = self.model.logits(hidden_BTD[:, :-1]).flatten(0, 1).float()
        targets = labels_BT[:, 1:].flatten()
        if num_items is None:
            return functional.cross_entropy(logits, targets)
        return functional.cross_entropy(logits, targets, reduction="sum") / num_items

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.init_std)
        elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed = value

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.model.head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As transformers does it, for a larger or a smaller vocabulary; the decoder's shape follows."""
        embeddings: nn.Embedding = super().resize_token_embeddings(*args, **kwargs)
        self.model.shape = self.config.shape
        return embeddings

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        if getattr(gradient_checkpointing_func, "keywords", {}).get("use_reentrant"):
            raise ValueError("use_reentrant = True: gradients of shared keys and values would be wrong; use False")
        if every_n_layers != 1:
            raise ValueError(f"every_n_layers = {every_n_layers}: every layer is checkpointed, or none; use 1")
        self.model.gradient_checkpointing = enable


def _only_one(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    if input_ids is not None and inputs_embeds is None:
        return input_ids
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise ValueError("forward takes input_ids or inputs_embeds: one of them, not both")


def load_checked(path: str | Path, **kwargs: Any) -> MLKVForCausalLM:
    """`from_pretrained` that refuses a checkpoint whose weights are not exactly the model's, or not all finite.

    Raises ValueError, also where its generation config cannot be read.
    """
    # transformers only logs missing weights and continues with random ones: a resumed training once continued with a
    # new head. Mismatched sizes are accepted here to be listed below.
    loaded: Any = MLKVForCausalLM.from_pretrained(
        path, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    model, info = loaded
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(wrong.values()):
        listed = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys)}" for kind, keys in wrong.items() if keys)
        raise ValueError(f"{path} does not hold this model's weights: {listed}")
    if reason := non_finite(model.state_dict()):
        raise ValueError(f"{path}: {reason}")
    model.generation_config = read_generation_config(Path(path))
    return model


def read_generation_config(checkpoint: Path) -> StoredGenerationConfig:
    """The defaults of generate() from generation_config.json, or from config.json where there is none, as transformers
    reads them. Raises ValueError where that fails."""
    path = checkpoint / "generation_config.json"
    try:
        if path.exists():
            return StoredGenerationConfig.from_pretrained(checkpoint)
        return StoredGenerationConfig.from_pretrained(
            checkpoint, config_file_name="config.json", _from_model_config=True
        )
    except (OSError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def non_finite(weights: Mapping[str, Tensor]) -> str | None:
    """A sentence about the first weight that has infinite values or NaN; None where all are finite. Nothing that is
    computed with such a weight means anything."""
    names = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if not names:
        return None
    first, bad = names[0], int((~weights[names[0]].isfinite()).sum())
    others = f", and {len(names) - 1} other weights" if names[1:] else ""
    return f"weight {first} is not finite ({bad:,} of its {weights[first].numel():,} values){others}"


MLKVConfig.register_for_auto_class()
MLKVForCausalLM.register_for_auto_class("AutoModelForCausalLM")
if not __name__.startswith("transformers_modules"):  # a copy out of a checkpoint is known by its auto_map already
    AutoConfig.register("mlkv", MLKVConfig)
    AutoModelForCausalLM.register(MLKVConfig, MLKVForCausalLM)
