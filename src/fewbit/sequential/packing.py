"""Weights that are rounded without data: from a matrix of any floating type to packed codes in the model.

Matrices whose blocks lie within rows are quantized a few rows at a time, so that no float32 copy of a whole one is
made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewbit.algorithms import rtn
from fewbit.errors import FewbitError
from fewbit.kernels import dispatch
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn import kinds
from fewbit.nn.quantizers import DynamicQuantizer, InputQuantizer
from fewbit.nn.statistics import dynamic_spec, float_bias
from fewbit.nn.swap import swap_layer
from fewbit.nn.weight import PackedWeight, QuantizedWeight
from fewbit.numbers.granularity import PerChannel, PerGroup
from fewbit.numbers.scale_type import fitting_groups, fitting_spec
from fewbit.numbers.spec import QSpec
from fewbit.recipe import LayerPlan
from fewbit.sequential.solve import Settings, quantized_weight_of

# Values that are quantized at a time: small enough for the caches, large enough for all threads.
_PIECE = 4 * 2**20
_ONE_PASS = (torch.float32, torch.bfloat16, torch.float16)


def swap_tied(model: nn.Module, plans: Sequence[LayerPlan], settings: Settings) -> None:
    """Quantize layers that share one weight, which the model holds, and swap them."""
    matrix = kinds.weight_matrix(model.get_submodule(plans[0].name))
    packed = PackedWeight(pack(matrix, plans[0], settings))
    for plan in plans:
        swap(model, plan, packed)


def pack(matrix: Tensor, plan: LayerPlan, settings: Settings) -> PackedMatrix:
    """A quantized matrix ``[out, K]`` from values of any floating type.

    Raises:
        FewbitError: NaN, infinity, or a scale that cannot be stored.
    """
    assert plan.scheme is not None
    fused = _in_one_pass(matrix, fitting_groups(plan.scheme.weights, matrix.shape[-1]), settings)
    if fused is not None:
        return fused
    spec = fitting_spec(matrix, plan.scheme.weights)
    rows, columns = matrix.shape
    step = max(8, _PIECE // max(columns, 1) // 8 * 8)  # so that each piece fills whole bytes
    if settings.algorithm != "rtn" or not _by_row(spec) or rows <= step:
        return PackedMatrix.pack(quantized_weight_of(matrix.to(torch.float32), plan, settings, None)[0])
    pieces = [
        PackedMatrix.pack(quantized_weight_of(part.to(torch.float32), plan, settings, None, spec)[0])
        for part in torch.split(matrix, step)
    ]
    zero_points = [piece.zero_point for piece in pieces if piece.zero_point is not None]
    return PackedMatrix(
        torch.cat([piece.codes for piece in pieces]),
        torch.cat([piece.scale for piece in pieces]),
        torch.cat(zero_points) if zero_points else None,
        spec,
        (rows, columns),
    )


def _in_one_pass(matrix: Tensor, spec: QSpec, settings: Settings) -> PackedMatrix | None:
    """Min-max ranges, codes and packing in one pass over values in their own type; None where that does not apply."""
    calibrator = settings.recipe.weight_calibrator or ("minmax" if spec.bits >= rtn.MINMAX_FROM_BITS else "mse")
    plain = spec.format.is_integer and spec.bits <= 8 and _by_row(spec) and matrix.numel() > 0
    if settings.algorithm != "rtn" or calibrator != "minmax" or not plain or matrix.dtype not in _ONE_PASS:
        return None
    grain, shape = spec.granularity, (matrix.shape[0], matrix.shape[1])
    try:
        codes, scale, zero_point = dispatch.minmax_quantize_rows(grain.to_blocks(matrix).contiguous(), spec, spec.bits)
    except FewbitError:
        return None  # the long way says what is wrong, or takes wider scales
    if spec.scale_type != "f32":
        limits, largest = torch.finfo(spec.scale_dtype), float(scale.max())
        if not limits.smallest_normal <= largest <= limits.max / 4:  # fitting_spec might decide otherwise
            return None
    if zero_point is not None:
        zero_point = dispatch.pack(zero_point.to(spec.format.code_dtype), spec.bits)
    return PackedMatrix(codes, scale.reshape(grain.scale_shape(shape)).to(spec.scale_dtype), zero_point, spec, shape)


def _by_row(spec: QSpec) -> bool:
    return isinstance(spec.granularity, PerGroup) or spec.granularity == PerChannel(0)


def matrix_of(model: nn.Module, plan: LayerPlan, tensor: Tensor) -> Tensor:
    """The weight as ``[out, K]``, without a copy where it is a matrix already."""
    module = model.get_submodule(plan.name)
    if plan.kind in ("Linear", "Embedding"):
        return tensor
    empty = module._parameters["weight"]
    module._parameters["weight"] = nn.Parameter(tensor, requires_grad=False)
    matrix = kinds.weight_matrix(module)
    module._parameters["weight"] = empty
    return matrix


def swap(model: nn.Module, plan: LayerPlan, packed: PackedWeight) -> None:
    """Put a quantized layer in the place of a float one; static activations have no range yet."""
    assert plan.scheme is not None
    module = model.get_submodule(plan.name)
    quantizer: InputQuantizer | None = None
    if plan.scheme.activations is not None and plan.scheme.dynamic:
        quantizer = DynamicQuantizer(dynamic_spec(plan.scheme.activations, plan.kind))
    weight = QuantizedWeight(packed, quantizer, kinds.kernel_shape(module))
    swap_layer(model, plan.name, weight, float_bias(module))
