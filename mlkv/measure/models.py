"""The models of a session: they share every weight that has the same name and size, so that nine variants need little
more memory than one.

Weights are random, and no time or size depends on them. What a model has alone (keys and values, widened MLPs) stays in
the machine's memory while another model runs on a GPU: a variant may not run out of memory for what others hold.
"""

from __future__ import annotations

import torch
from torch import nn

from ..hf import MLKVForCausalLM
from ..layout import KVLayout
from ..shape import DecoderShape


class Models:
    """Makes models, and has the one that is to run on its device."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._weights: dict[tuple[str, torch.Size], nn.Parameter] = {}
        """Every weight of every model, by the name and size that models share it by."""

    def make(self, shape: DecoderShape, layout: KVLayout) -> MLKVForCausalLM:
        model = MLKVForCausalLM.from_shape(shape, layout, seed=0, dtype=self._dtype).eval()
        for module_name, module in model.named_modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                place = f"{module_name}.{name}", weight.shape
                setattr(module, name, self._weights.setdefault(place, weight))
        for buffer in model.buffers():
            buffer.data = buffer.data.to(self._device)
        return model

    def bring(self, model: MLKVForCausalLM) -> None:
        """Have its weights on the device, and no others."""
        if self._device.type == "cpu":
            return
        own = {id(weight) for weight in model.parameters()}
        for weight in self._weights.values():  # first away, then in: both together may not fit
            if id(weight) not in own:
                weight.data = weight.data.cpu()
        model.to(self._device)


def weight_bytes(model: MLKVForCausalLM) -> int:
    """Of all its weights and tables, those that it shares with others too."""
    return sum(part.numel() * part.element_size() for part in (*model.parameters(), *model.buffers()))
