"""Activation functions of forward passes in bfloat16 as tables: torch's own bits in a fifth of the time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewbit.kernels import dispatch
from fewbit.kernels.lookup import lookup, table_of
from fewbit.sequential.capture import Stand
from fewbit.sequential.forward import computing

_TORCHS = (nn.ELU, nn.GELU, nn.Mish, nn.SELU, nn.Sigmoid, nn.SiLU, nn.Softplus, nn.Tanh)
# What works value by value there; XIELU has parameters, and the others cost no more than a copy.
_TRANSFORMERS = (
    "AccurateGELUActivation",
    "FastGELUActivation",
    "GELUActivation",
    "GELUTanh",
    "MishActivation",
    "NewGELUActivation",
    "QuickGELUActivation",
    "SiLUActivation",
)


def tabled(model: nn.Module, block: str, compute: str) -> dict[str, nn.Module]:
    """What stands in the places of a block's activation functions while it runs on windows; none where products are in
    float32 or there is no kernel.

    Args:
        model: The model.
        block: The block's name.
        compute: The type of the passes.
    """
    if compute != "bfloat16" or dispatch.native() is None:
        return {}
    found = model.get_submodule(block).named_modules(prefix=block)
    return {name: _Tabled(module, compute) for name, module in found if name != block and _by_value(module)}


def _by_value(module: nn.Module) -> bool:
    kind = type(module)
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return kind in _TORCHS or (kind.__module__ == "transformers.activations" and kind.__name__ in _TRANSFORMERS)


class _Tabled(Stand):
    def __init__(self, module: nn.Module, compute: str) -> None:
        super().__init__(module)
        with torch.no_grad(), computing(compute):
            table = table_of(module)
        object.__setattr__(self, "table", table)

    def forward(self, x: Tensor) -> Tensor:
        taken = x.dtype == torch.bfloat16 == self.table.dtype and x.device.type == "cpu" and not x.requires_grad
        result: Tensor = lookup(self.table, x) if taken else self._block(x)
        return result
