"""The quantized weight of a layer: packed codes, and what a layer does with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.kernels import lowbit, ops
from fewbit.kernels.bound import BoundLinear
from fewbit.kernels.products import Geometry
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn.inputs import check_input, wants_derivative
from fewbit.nn.intercept import read_call
from fewbit.nn.precision import FixedDtypes
from fewbit.nn.quantizers import DynamicQuantizer, InputQuantizer, quantizer_from_config
from fewbit.nn.transposed import Transposed
from fewbit.numbers import packing
from fewbit.numbers.granularity import PerChannel, PerGroup
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

_DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float16, torch.bfloat16, torch.float64)}
_CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class PackedWeight(FixedDtypes):
    """A packed matrix ``[rows, columns]`` as buffers; tied layers share one."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, matrix: PackedMatrix) -> None:
        super().__init__()
        self.spec, self.matrix_shape = matrix.spec, matrix.shape
        self.register_buffer("codes", matrix.codes)
        self.register_buffer("scale", matrix.scale)
        self.register_buffer("zero_point", matrix.zero_point)

    def matrix(self) -> PackedMatrix:
        """The buffers as they are now."""
        return PackedMatrix(self.codes, self.scale, self.zero_point, self.spec, self.matrix_shape)


class QuantizedWeight(nn.Module):
    """What stands in a quantized layer's ``weight``: packed codes in matrix form ``[out, K]``, and the input quantizer.

    With an input quantizer products are computed on integers; without one the weight is dequantized and the product is
    in float.
    Functions that are called with it in a weight's place (``F.linear``, ``F.conv2d``, ``F.embedding``) compute the
    quantized result, so a layer class with a forward of its own keeps working.

    Attributes:
        packed: The codes, scales and zero points.
        input_quantizer: None, static or dynamic.
        kernel: The spatial shape of a convolution's kernel, empty otherwise.
        dtype: Of the float weight, which looked up rows have again.
    """

    input_quantizer: InputQuantizer | None

    def __init__(
        self,
        packed: PackedWeight,
        input_quantizer: InputQuantizer | None = None,
        kernel: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.packed = packed
        self.input_quantizer = input_quantizer
        self.kernel = tuple(kernel)
        self.dtype = dtype
        self.bound: BoundLinear | None = None  # how the last call of `linear` went, if the short way

    @property
    def shape(self) -> torch.Size:
        """Of the float weight: ``[out, in, *kernel]``."""
        rows, columns = self.packed.matrix_shape
        return torch.Size((rows, columns // math.prod(self.kernel), *self.kernel))

    @property
    def T(self) -> Transposed:
        """The transpose of a linear layer's weight, to multiply with."""
        return Transposed(self)

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.packed.codes.device

    def __getitem__(self, index: Any) -> Tensor:
        """Values of the dequantized weight, for layers that pick rows by themselves."""
        return ops.dequantized(self.packed.matrix()).reshape(self.shape)[index].to(self.dtype)

    def weight_qtensor(self) -> QTensor:
        """The codes, one value an element, as a matrix ``[out, K]``."""
        return self.packed.matrix().unpack()

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """``x Wᵀ + bias`` for ``x [..., K]``, in the dtype of ``x``.

        Gradients reach ``x`` where activations are float; products on integers have none, for training there is
        :func:`fewbit.prepare_qat`.

        Raises:
            FewbitError: ``x`` is nothing that a layer can take (:mod:`fewbit.nn.inputs`).
        """
        bound = self.bound
        if bound is not None and not torch.compiler.is_compiling():
            modules: Any = self._modules  # past nn.Module's own lookup, which takes as long as all the rest
            if bound.serves(x, modules["packed"]._buffers, bias, modules.get("input_quantizer")):
                return bound(x)
        matrix, quantizer = self.packed.matrix(), self.input_quantizer
        check_input(x, quantizer is not None)
        if quantizer is None:
            if lowbit.has_layout(matrix) and not wants_derivative(x):
                self._bind(matrix, bias, None)
                return ops.linear_float(x, matrix, bias)
            return F.linear(x, ops.dequantized(matrix).to(x.dtype), _like(bias, x))
        if isinstance(quantizer, DynamicQuantizer) and lowbit.takes_dynamic(quantizer.spec, matrix):
            self._bind(matrix, bias, quantizer.spec)
            return ops.linear_dynamic(x, quantizer.spec, matrix, bias)
        codes, scale, zero_point = quantizer(x)
        return ops.linear(codes, scale, zero_point, matrix, _single(bias)).to(x.dtype)

    def _bind(self, matrix: PackedMatrix, bias: Tensor | None, spec: QSpec | None) -> None:
        """Later calls go the short way."""
        if torch.compiler.is_compiling():
            return
        buffers, quantizer = self.packed._buffers, self._modules.get("input_quantizer")
        if self.bound is None or not self.bound.holds(buffers, bias, quantizer):
            self.bound = lowbit.bind(matrix, bias, quantizer, spec)

    def conv(self, x: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
        """A convolution of ``x [N, C, *spatial]`` (or without N), in the dtype of ``x``."""
        check_input(x, self.input_quantizer is not None)
        if x.dim() == len(geometry.kernel) + 1:
            return self.conv(x.unsqueeze(0), bias, geometry).squeeze(0)
        matrix = self.packed.matrix()
        if self.input_quantizer is None:
            kernel = ops.dequantized(matrix).reshape(matrix.shape[0], -1, *geometry.kernel).to(x.dtype)
            return _float_conv(x, kernel, _like(bias, x), geometry)
        codes, scale, zero_point = self.input_quantizer(x)
        return ops.conv(codes, scale, zero_point, matrix, _single(bias), geometry).to(x.dtype)

    def embedding(self, index: Tensor) -> Tensor:
        """Dequantized rows ``[*index.shape, columns]`` in the float weight's dtype.

        Only the rows in use are unpacked where rows are whole bytes.
        """
        matrix = self.packed.matrix()
        if not _rows_stand_apart(matrix):
            return F.embedding(index, ops.dequantized(matrix)).to(self.dtype)
        rows, columns = matrix.shape
        flat = index.reshape(-1)
        zero_point = matrix.zero_point
        if zero_point is not None:
            zero_point = zero_point.reshape(rows, -1).index_select(0, flat)
            packed = matrix.spec.format.is_integer
            zero_point = zero_point.reshape(-1) if packed else zero_point.reshape(-1, *matrix.scale.shape[1:])
        codes = matrix.codes.reshape(rows, -1).index_select(0, flat).reshape(-1)
        scale = matrix.scale.index_select(0, flat)
        used = PackedMatrix(codes, scale, zero_point, matrix.spec, (flat.shape[0], columns))
        return ops.dequantized(used).reshape(*index.shape, columns).to(self.dtype)

    def config(self) -> dict[str, Any]:
        """Everything but the buffers, for :meth:`from_config`."""
        quantizer = None if self.input_quantizer is None else self.input_quantizer.config()
        return {
            "spec": str(self.packed.spec),
            "shape": list(self.packed.matrix_shape),
            "kernel": list(self.kernel),
            "input": quantizer,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> QuantizedWeight:
        """A weight of zeros, whose state is loaded afterwards."""
        spec, shape = QSpec.parse(config["spec"]), (int(config["shape"][0]), int(config["shape"][1]))
        quantizer = quantizer_from_config(config["input"])
        return cls(PackedWeight(_empty(spec, shape)), quantizer, config["kernel"], _DTYPES[config["dtype"]])

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Serve a functional call that has this weight among its arguments."""
        weight = next(value for value in [*args, *(kwargs or {}).values()] if isinstance(value, cls))
        call = read_call(function, args, kwargs, weight.kernel)
        if call.kind == "embedding":
            return weight.embedding(call.x)
        if call.kind == "linear":
            return weight.linear(call.x, call.bias)
        assert call.geometry is not None
        return weight.conv(call.x, call.bias, call.geometry)

    def extra_repr(self) -> str:
        """Spec and shape."""
        return f"{self.packed.spec}, shape={self.packed.matrix_shape}"


def _float_conv(x: Tensor, kernel: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    padding = tuple(before for before, _ in geometry.padding)
    if any(before != after for before, after in geometry.padding):
        x = F.pad(x, [side for pair in reversed(geometry.padding) for side in pair])
        padding = (0,) * len(padding)
    return _CONVS[len(padding)](x, kernel, bias, geometry.stride, padding, geometry.dilation, geometry.groups)


def _rows_stand_apart(matrix: PackedMatrix) -> bool:
    """Whether each row has whole bytes of codes and zero points, and scales of its own."""
    grain, bits, (rows, columns) = matrix.spec.granularity, matrix.spec.bits, matrix.shape
    if not (grain == PerChannel(0) or isinstance(grain, PerGroup)) or matrix.codes.dtype != torch.uint8:
        return False
    zero_point_bits = 0
    if matrix.zero_point is not None and matrix.spec.format.is_integer:
        zero_point_bits = matrix.scale.numel() // rows * bits
    return grain.padded_shape((rows, columns))[1] * bits % 8 == 0 and zero_point_bits % 8 == 0


def _single(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.to(torch.float32)


def _like(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)


def _empty(spec: QSpec, shape: tuple[int, int]) -> PackedMatrix:
    grain, fmt = spec.granularity, spec.format
    padded, scale_shape = grain.padded_shape(shape), grain.scale_shape(shape)
    if fmt.code_dtype.is_floating_point:
        codes = torch.zeros(padded, dtype=fmt.code_dtype)
    else:
        codes = torch.zeros(packing.packed_size(padded[0] * padded[1], fmt.bits), dtype=torch.uint8)
    scale = torch.ones(scale_shape, dtype=spec.scale_dtype)
    zero_point: Tensor | None = None
    if not spec.symmetric and fmt.is_integer:
        zero_point = torch.zeros(packing.packed_size(scale.numel(), fmt.bits), dtype=torch.uint8)
    elif not spec.symmetric:
        zero_point = torch.zeros(scale_shape)
    return PackedMatrix(codes, scale, zero_point, spec, shape)
