"""Less memory for a little time, with the same bits, in trainings whose gradients over the vocabulary are large.

What costs little is computed again in the backward pass: the weights of attention by products, and what comes out of an
MLP's activation. And memory that a step frees goes back to the system before the step takes more. A training lets the C
library keep it (mlkv/freed.py), but gradients of `KEPT` bytes come from the system all the same and would lie beside
what activations left: at a vocabulary of 50,304, that was a fifth of the peak.
"""

from __future__ import annotations

from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from ..attention import Attention
from ..freed import KEPT, return_freed_memory
from ..layers import MLP
from ..model import Decoder


def make_lean(decoder: Decoder) -> None:
    """Where `is_lean` (memory.py)."""
    for module in decoder.modules():
        if isinstance(module, Attention):
            module.keeps = False
        elif isinstance(module, MLP):
            module.keeps = decoder.shape.activation == "relu"  # which keeps what comes out in any case
    for block in decoder.blocks:  # in the backward pass a layer frees more than the next ones take
        weights = [parameter for parameter in block.parameters() if parameter.requires_grad]
        register_multi_grad_hook(weights, lambda _gradients: return_freed_memory())


def make_room(weight: Tensor) -> None:
    """Before the gradient of this weight is made."""
    if weight.device.type == "cpu" and weight.nbytes >= KEPT:
        return_freed_memory()
