"""From solved ranges and codes to quantized layers in the model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fewbit.algorithms.bias_correction import correction
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn import kinds
from fewbit.nn.quantizers import InputQuantizer
from fewbit.nn.statistics import LayerStatistics, float_bias
from fewbit.nn.swap import swap_layer
from fewbit.nn.weight import PackedWeight, QuantizedWeight
from fewbit.numbers.qtensor import QTensor
from fewbit.recipe import LayerPlan


def build_layers(
    model: nn.Module,
    plans: list[LayerPlan],
    weights: Mapping[str, tuple[Tensor, QTensor]],
    inputs: Mapping[str, InputQuantizer | None],
    statistics: Mapping[str, LayerStatistics],
) -> tuple[nn.Module, int]:
    """Swap every planned layer for its quantized counterpart.

    Args:
        model: Changed in place.
        plans: The layers to swap.
        weights: Float matrix and codes by layer; tied layers have the same object.
        inputs: Input quantizers by layer.
        statistics: With the mean inputs for bias correction.

    Returns:
        The model, and how many biases were corrected.
    """
    packed: dict[int, PackedWeight] = {}
    corrected = 0
    for plan in plans:
        module = model.get_submodule(plan.name)
        matrix, codes = weights[plan.name]
        if id(codes) not in packed:
            packed[id(codes)] = PackedWeight(PackedMatrix.pack(codes)).to(matrix.device)
        bias = float_bias(module)
        mean = statistics[plan.name].mean
        if mean is not None:
            shift = correction(matrix, codes.dequantize(), mean.mean()).to(torch.float32)
            bias = shift if bias is None else bias + shift
            corrected += 1
        weight = QuantizedWeight(packed[id(codes)], inputs[plan.name], kinds.kernel_shape(module))
        model = swap_layer(model, plan.name, weight.to(matrix.device), bias)
    return model, corrected
