"""The short way through a low-bit layer in inference: everything that is the same at every call, looked up once.

A layer of 4096×4096 in 4 bits streams 8 MB through the caches, after which each Python function on the way to the next
layer's kernel costs ten times what it costs in a loop; the long way took 0.09 ms of a call of 0.66.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from fewbit.kernels import threads


class BoundLinear:
    """A layer's packed weights and the way its activations go, ready to be called.

    Bound to the very tensors it was made of: :meth:`holds` is False once one was replaced or written to. A copy or
    a pickle of it is None: the copied layer binds its own tensors.
    """

    __slots__ = (
        "_bias", "_bias_address", "_native", "_states", "_tensors", "columns", "few", "layout", "outputs", "per_row",
        "qmax", "quantizer",
    )  # fmt: skip

    def __init__(
        self,
        native: ModuleType,
        layout: Any,
        shape: tuple[int, int],
        tensors: tuple[Tensor, Tensor, Tensor | None],
        bias: Tensor | None,
        quantizer: object,
        qmax: int = 0,
        per_row: bool = False,
        few: int | None = None,
    ) -> None:
        """
        Args:
            native: The compiled module.
            layout: Its ``LowbitMatrix``.
            shape: Outputs and columns.
            tensors: Codes, scale and zero point, as the layer holds them.
            bias: float32 ``[N]``, contiguous, or None.
            quantizer: What quantizes the activations, compared by identity.
            qmax: Largest code of an activation, 0 for products in float.
            per_row: Whether a scale is one for the row, not the group.
            few: Most values of an input it serves, or None for any.
        """
        self._native, self.layout, (self.outputs, self.columns) = native, layout, shape
        self._tensors = tensors
        own = (t for t in tensors if t is not None)
        self._states = [(t, t.data_ptr(), -1 if t.is_inference() else t._version) for t in own]
        self._bias, self._bias_address = bias, 0 if bias is None else bias.data_ptr()
        self.quantizer, self.qmax, self.per_row, self.few = quantizer, qmax, per_row, few

    def serves(self, x: Tensor, buffers: Mapping[str, Tensor | None], bias: Tensor | None, quantizer: object) -> bool:
        """Whether ``self(x)`` is what the layer of these buffers computes: nothing of the layer is another than it was,
        and x is a plain, contiguous tensor that wants no gradient."""
        return (
            type(x) is Tensor
            and ((dtype := x.dtype) is torch.float32 or dtype is torch.bfloat16)
            and x.is_cpu
            and peek_interpreter_stack() is None  # no transform of torch.func, whose tensors have no memory
            and x.is_contiguous()
            and not (x.is_neg() or x._is_zerotensor())  # whose memory does not hold their values
            and x.dim() > 0
            and x.shape[-1] == self.columns
            and not (x.requires_grad and torch.is_grad_enabled())
            and forward_ad._current_level < 0  # none is being differentiated
            and (self.few is None or x.numel() < self.few)
            and self.holds(buffers, bias, quantizer)
        )

    def holds(self, buffers: Mapping[str, Tensor | None], bias: Tensor | None, quantizer: object) -> bool:
        """Whether the layer still is what it was when this was made."""
        codes, scale, zero_point = self._tensors
        if buffers["codes"] is not codes or buffers["scale"] is not scale or buffers["zero_point"] is not zero_point:
            return False
        if quantizer is not self.quantizer or bias is not self._bias:
            return False
        if bias is not None and bias.data_ptr() != self._bias_address:
            return False
        for tensor, address, version in self._states:
            if tensor.data_ptr() != address or (version >= 0 and tensor._version != version):
                return False
        return True

    def __call__(self, x: Tensor) -> Tensor:
        """``x̂ Wᵀ + bias`` in the dtype of ``x``."""
        threads.follow_torch(self._native)
        shape = (x.shape[0], self.outputs) if x.dim() == 2 else (*x.shape[:-1], self.outputs)
        out = x.new_empty(shape)
        self.layout.linear_at(
            x.data_ptr(), x.numel() // self.columns, x.dtype is torch.bfloat16, self.qmax, self.per_row,
            self._bias_address, out.data_ptr(),
        )  # fmt: skip
        return out

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()
