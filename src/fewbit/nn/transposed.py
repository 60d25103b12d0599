"""The transpose of a quantized weight, for layers that multiply by ``self.weight.T`` themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import FewbitError

_PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)


class Transposed:
    """Stands for ``Wᵀ [K, out]`` in ``x @ Wᵀ``, which is computed as ``F.linear(x, W)``."""

    def __init__(self, weight: Any) -> None:
        self.weight = weight

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Serve the product.

        Raises:
            FewbitError: It is no product with the transposed weight on the right.
        """
        if function in _PRODUCTS and len(args) == 2 and isinstance(args[1], cls):
            return args[1].weight.linear(args[0], None)
        name = getattr(function, "__name__", str(function))
        raise FewbitError(
            f"the transpose of a quantized weight was used in {name}, which has no integer form; "
            "skip that layer with a rule"
        )
