"""The model that is checked: loaded from a directory, or made of a config with random weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..device import available_memory

TOKENS = 12
"""Of a row, where no window is longer than that."""
LONGEST = 192
"""Tokens of a row at most: windows beyond half of it are not left by any row."""


@dataclass
class Subject:
    """A model in evaluation mode, and rows of tokens for it.

    What is compared is logits `[B, T, V]`, or for a model without a head its last hidden states `[B, T, D]`.
    """

    model: PreTrainedModel
    weights: Literal["checkpoint", "random"]
    ids: Tensor
    """`[B, T]`"""
    seed: int

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Of the text model, where the config is of several models."""
        config: PreTrainedConfig = self.model.config.get_text_config()
        return config

    @cached_property
    def has_head(self) -> bool:
        return self.model.get_output_embeddings() is not None

    def accepts(self, argument: str) -> bool:
        return argument in inspect.signature(self.model.forward).parameters

    def output(self, ids_BT: Tensor, mask_BS: Tensor | None = None, **arguments: Any) -> Any:
        """One pass. `mask_BS` has 0 at padding; positions are then those that generate() gives."""
        if mask_BS is not None:
            arguments["attention_mask"] = mask_BS
            if self.accepts("position_ids"):
                arguments["position_ids"] = (mask_BS.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        return self.model(input_ids=ids_BT, **arguments)

    def states(self, ids_BT: Tensor, mask_BS: Tensor | None = None, **arguments: Any) -> Tensor:
        """What one pass computes, without a cache unless `use_cache` or `past_key_values` is given."""
        if "past_key_values" not in arguments and self.accepts("use_cache"):
            arguments = {"use_cache": False, **arguments}
        return self.states_of(self.output(ids_BT, mask_BS, **arguments))

    def states_of(self, output: Any) -> Tensor:
        states: Tensor = output.logits if self.has_head else output.last_hidden_state
        return states

    def loss(self, ids_BT: Tensor, **arguments: Any) -> Tensor:
        """The model's own loss of these tokens; without a head, the mean of its hidden states in fixed random
        proportions."""
        if self.has_head:
            loss: Tensor = self.model(input_ids=ids_BT, labels=ids_BT, **arguments).loss
            return loss
        states_BTD = self.states_of(self.model(input_ids=ids_BT, **arguments))
        weights_BTD = torch.randn(states_BTD.shape, generator=torch.Generator().manual_seed(self.seed))
        return (states_BTD * weights_BTD.to(states_BTD)).mean()

    @cached_property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers. Raises LookupError where they cannot be told."""
        count = self.config.num_hidden_layers
        for module in self.model.modules():
            if isinstance(module, nn.ModuleList) and len(module) == count:
                return module
        raise LookupError(f"no list of {count} layers among the model's modules")

    @contextmanager
    def training(self) -> Iterator[None]:
        """In training mode, without any dropout (see `_without_dropout`), and without gradients afterwards."""
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()
            self.model.zero_grad(set_to_none=True)


def load_subject(
    path: Path,
    *,
    random_weights: bool = False,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    tokens: int | None = None,
) -> Subject:
    """A model directory, or a config alone, with random weights of these seeds. Raises ValueError in one line."""
    folder = path if path.is_dir() else path.parent
    config = _read_config(path, trust_remote_code)
    random_weights = random_weights or not path.is_dir() or not _has_weights(folder)
    torch.manual_seed(seed)
    try:
        rows = _rows(config.get_text_config(), tokens, seed).to(device)
        if random_weights:
            model = _random(config.get_text_config(), trust_remote_code, dtype, seed)
        else:
            model = _loaded(folder, config, trust_remote_code, dtype)
    except Exception as error:  # of any class: a model's own code builds it
        raise ValueError(f"{path}: {one_line(error)}") from error
    _run_as_often_as_exact(model)
    return Subject(model.to(device).eval(), "random" if random_weights else "checkpoint", rows, seed)


def _run_as_often_as_exact(model: PreTrainedModel) -> None:
    """Our layers that read from above run several times over a text: with as many passes as it has tokens one pass is
    what single tokens are, and with fewer it is an approximation of that, which differs by design."""
    if getattr(model.config, "forward_passes", None) is not None:
        decoder: Any = model.model
        model.config.forward_passes = 2 * LONGEST
        decoder.layout = replace(decoder.layout, forward_passes=2 * LONGEST)


def one_line(error: BaseException) -> str:
    """What an error says, cut where it is long; with its class, where that is not one of plain words."""
    words = " ".join(str(error).split())
    words = words if len(words) <= 300 else f"{words[:300]}…"
    return words if type(error) is ValueError else f"{type(error).__name__}: {words}".removesuffix(": ")


def _read_config(path: Path, trust_remote_code: bool) -> PreTrainedConfig:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{path}: no config.json there; a model of the hub is downloaded first: `hf download NAME --local-dir DIR`"
        )
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: is no JSON: {one_line(error)}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise ValueError(f"{file}: names no model_type, so transformers cannot tell what model it is")
    if fields["model_type"] == "mlkv":
        from .. import hf  # noqa: F401  which registers our own classes
    known = fields["model_type"] in _known_model_types()
    if fields.get("auto_map") and not known and not trust_remote_code:
        raise ValueError(
            f"{path}: the model has code of its own ({', '.join(sorted(map(str, fields['auto_map'].values())))}); read "
            "it, then add --trust-remote-code to run it"
        )
    if not known and not fields.get("auto_map"):
        from transformers import __version__

        raise ValueError(f"{file}: model_type = {fields['model_type']}: transformers {__version__} has no such model")
    try:
        where = file.parent if file.name == "config.json" else file
        config: PreTrainedConfig = AutoConfig.from_pretrained(where, trust_remote_code=trust_remote_code)
    except Exception as error:  # of any class: a config's own code checks its fields
        raise ValueError(f"{file}: is refused: {one_line(error)}") from error
    return _without_dropout(config)


def _known_model_types() -> set[str]:
    """The model types that transformers knows, and those that were registered."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return set(CONFIG_MAPPING.keys())


def _without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Training mode then computes what evaluation mode does, and a pass that is repeated computes the same."""
    for each in {id(one): one for one in (config, config.get_text_config())}.values():
        for name, value in list(vars(each).items()):
            if isinstance(value, float) and any(word in name for word in ("dropout", "pdrop", "layerdrop")):
                setattr(each, name, 0.0)
    return config


def _has_weights(folder: Path) -> bool:
    patterns = ("*.safetensors", "pytorch_model*.bin")
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _auto_class(config: PreTrainedConfig) -> Any:
    """AutoModelForCausalLM where that has a class for this config, else AutoModel."""
    has_head = type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in (
        getattr(config, "auto_map", None) or {}
    )
    return AutoModelForCausalLM if has_head else AutoModel


def _loaded(folder: Path, config: PreTrainedConfig, trust: bool, dtype: torch.dtype) -> PreTrainedModel:
    loaded: Any = _auto_class(config).from_pretrained(
        folder, config=config, trust_remote_code=trust, dtype=dtype, output_loading_info=True
    )
    model: PreTrainedModel = loaded[0]
    if missing := sorted(map(str, [*loaded[1]["missing_keys"], *loaded[1]["mismatched_keys"]])):
        # transformers goes on with random ones.
        raise ValueError(f"weights are missing or of another shape: {', '.join(missing[:3])} ({len(missing)} in all)")
    return model


def _random(config: PreTrainedConfig, trust: bool, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    auto = _auto_class(config)
    with torch.device("meta"):
        count = sum(p.numel() for p in auto.from_config(config, trust_remote_code=trust).parameters())
    # Weights, their gradients twice, and what a pass makes of them.
    if (needed := 4 * count * dtype.itemsize) > (free := available_memory()):
        raise ValueError(f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free; take a smaller config")
    model: PreTrainedModel = auto.from_config(config, trust_remote_code=trust, dtype=dtype)
    _spread(model, seed)
    return model


@torch.no_grad()
def _spread(model: PreTrainedModel, seed: int) -> None:
    """Weights with which every part counts. As models are born, attention is all but uniform, and biases and norms are
    zeros and ones, which would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            parameter.add_((0.1 * noise).to(parameter))


def _rows(config: PreTrainedConfig, tokens: int | None, seed: int) -> Tensor:
    """Two rows of random tokens, none of them a special one."""
    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "image", "audio", "video")]
    reserved = {token for each in special for token in (each if isinstance(each, list) else [each])}
    usable = torch.tensor([token for token in range(config.vocab_size) if token not in reserved])
    length = _length(config) if tokens is None else tokens
    context = getattr(config, "max_position_embeddings", None) or length
    if length > context:
        raise ValueError(f"tokens = {length}: the model's context is {context}")
    return usable[torch.randint(len(usable), (2, length), generator=torch.Generator().manual_seed(seed))]


def _length(config: PreTrainedConfig) -> int:
    """Long enough to leave a sliding window, where that is short."""
    window = getattr(config, "sliding_window", None) or 0
    length = 2 * window + 3 if TOKENS / 2 < window <= LONGEST / 2 - 3 else TOKENS
    return int(min(length, getattr(config, "max_position_embeddings", None) or length))
