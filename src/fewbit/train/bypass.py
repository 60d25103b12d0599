"""Finding weights that the model multiplies outside their layers, where fake quantization cannot see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fewbit.calibrate.collect import call_named
from fewbit.errors import FewbitError
from fewbit.nn.preserved import preserved_state
from fewbit.train.layers import trained_layers


class _Watch(TorchFunctionMode):
    """Which of some parameters are operands of a product."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("linear", "matmul", "mm", "bmm", "embedding", "addmm", "__matmul__") or name.startswith("conv"):
            operands = torch.utils._pytree.tree_leaves((args, kwargs or {}))
            self.found += [self.names[id(value)] for value in operands if id(value) in self.names]
        return func(*args, **(kwargs or {}))


def check_bypassed(model: nn.Module, batch: Any) -> None:
    """Run a prepared model once in evaluation mode, where no layer multiplies its own float weight.

    Raises:
        FewbitError: A weight was multiplied all the same; the message names the layer.
    """
    watch = _Watch({id(layer.weight): name for name, layer in trained_layers(model).items()})
    modes = [(module, module.training) for module in model.modules()]
    try:
        with preserved_state(model), watch:
            call_named(model.eval(), batch, "calibration batch 1")
    finally:
        for module, training in modes:
            module.training = training
    if watch.found:
        raise FewbitError(
            f"the weight of {watch.found[0]} is multiplied outside its layer, where training cannot quantize it; "
            "call the layer instead, or skip it with a rule"
        )
