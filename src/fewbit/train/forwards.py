"""How each kind of layer computes with another weight than its own, in float, with gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fewbit.errors import FewbitError
from fewbit.nn import kinds
from fewbit.nn.intercept import read_call

Quantize = Callable[[Tensor], Tensor]


def forward_with(
    module: Any, args: Sequence[Any], kwargs: Mapping[str, Any], weight: Tensor, bias: Tensor | None
) -> Tensor:
    """What a layer of torch (or Hugging Face's ``Conv1D``) computes, with this weight and bias."""
    x = args[0] if args else next(iter(kwargs.values()))
    if isinstance(module, nn.Embedding):
        return F.embedding(x, weight, module.padding_idx, scale_grad_by_freq=module.scale_grad_by_freq)
    if isinstance(module, nn.ConvTranspose2d):
        if len(args) > 1 or kwargs.get("output_size") is not None:
            raise FewbitError("a quantized ConvTranspose2d takes no output_size; set output_padding on the float layer")
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            module.stride,
            cast(Any, module.padding),
            module.output_padding,
            module.groups,
            module.dilation,
        )
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        result: Tensor = module._conv_forward(x, weight, bias)
        return result
    return F.linear(x, kinds.as_matrix(module, weight), bias)


class WithWeight(TorchFunctionMode):
    """While a layer's own forward runs: its weight is replaced where it is used, and the input that meets it quantized.

    Args:
        own: The layer's weight, found among the arguments.
        weight: Replaces it.
        quantize: For the input, or None.
        kernel: The weight's spatial shape.
    """

    def __init__(self, own: Tensor, weight: Tensor, quantize: Quantize | None, kernel: Sequence[int]) -> None:
        super().__init__()
        self.own, self.replacement, self.quantize, self.kernel = own, weight, quantize, tuple(kernel)

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if not any(value is self.own for value in [*args, *named.values()]) or not _is_product(func):
            return func(*args, **named)
        call = read_call(func, args, named, self.kernel)
        changed = {id(self.own): self.replacement}
        if self.quantize is not None and call.kind != "embedding":
            changed[id(call.x)] = self.quantize(call.x)

        def swap(value: Any) -> Any:
            return changed.get(id(value), value) if isinstance(value, Tensor) else value

        return func(*[swap(value) for value in args], **{key: swap(value) for key, value in named.items()})


def _is_product(function: Any) -> bool:
    """Whether the weight is multiplied here, and not merely looked at (its dtype, its device)."""
    name = getattr(function, "__name__", "")
    return name in ("linear", "embedding") or name.startswith("conv")
