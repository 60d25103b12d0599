"""Reading a call of ``F.linear``, ``F.conv*`` or ``F.embedding``: which input met the weight, and how.

Some layers have a forward of their own (TensorFlow-like padding, scaled embeddings) that hands ``self.weight`` to one
of these functions. An object with ``__torch_function__`` in the weight's place receives that call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry

_CONVS: dict[Any, int] = {
    F.conv1d: 1, F.conv2d: 2, F.conv3d: 3, torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3,
}  # fmt: skip
_CONV_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_EMBEDDING_NAMES = ("input", "weight", "padding_idx", "max_norm")
_LINEAR_NAMES = ("input", "weight", "bias")


@dataclass(frozen=True)
class Call:
    """One use of a weight: ``kind`` is ``linear``, ``conv`` or ``embedding``; ``geometry`` is there for ``conv``."""

    kind: str
    x: Tensor
    bias: Tensor | None = None
    geometry: Geometry | None = None


def read_call(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] | None, kernel: Sequence[int]
) -> Call:
    """Read the arguments.

    Args:
        function: What was called.
        args: Its positional arguments.
        kwargs: Its named arguments.
        kernel: The weight's spatial shape, empty for matrices.

    Raises:
        FewbitError: The function is none that a quantized weight can serve.
    """
    if function is F.linear or function is torch._C._nn.linear:
        named = _named(_LINEAR_NAMES, args, kwargs)
        return Call("linear", named["input"], named.get("bias"))
    if function in _CONVS:
        named = _named(_CONV_NAMES, args, kwargs)
        return Call("conv", named["input"], named.get("bias"), _geometry(named, kernel))
    if function is F.embedding:
        named = _named(_EMBEDDING_NAMES, args, kwargs)
        if named.get("max_norm") is not None:
            raise FewbitError("an embedding with max_norm changes its weights as it runs; skip it with a rule")
        return Call("embedding", named["input"])
    name = getattr(function, "__name__", str(function))
    raise FewbitError(f"a quantized weight was used in {name}, which has no integer form; skip that layer with a rule")


def _named(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {**dict(zip(names, args)), **(kwargs or {})}


def _geometry(named: Mapping[str, Any], kernel: Sequence[int]) -> Geometry:
    axes = len(kernel)
    stride, dilation = _each(named.get("stride", 1), axes), _each(named.get("dilation", 1), axes)
    padding = pad_pairs(named.get("padding", 0), kernel, dilation)
    return Geometry(tuple(kernel), stride, padding, dilation, int(named.get("groups", 1)))


def pad_pairs(
    padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis, from a number, a sequence, ``"same"`` or ``"valid"``."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation)]
        return tuple((total // 2, math.ceil(total / 2)) for total in totals)
    assert not isinstance(padding, str)
    return tuple((p, p) for p in _each(padding, len(kernel)))


def _each(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * axes
    return tuple(value) if len(value) == axes else (value[0],) * axes
