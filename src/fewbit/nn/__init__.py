"""Quantized modules, the swap of modules, batch norm folding."""

from fewbit.nn.fold import FoldResult, fold_batch_norm
from fewbit.nn.info import QuantizationInfo, attach_info, info
from fewbit.nn.layers import (
    LAYERS,
    AdaptedLinear,
    QuantConv,
    QuantConvTranspose2d,
    QuantEmbedding,
    QuantLayer,
    QuantLinear,
)
from fewbit.nn.swap import layer_config, quantized_layers, quantized_weight, restore_layer, swap_layer
from fewbit.nn.weight import PackedWeight, QuantizedWeight

__all__ = [
    "LAYERS",
    "AdaptedLinear",
    "FoldResult",
    "PackedWeight",
    "QuantConv",
    "QuantConvTranspose2d",
    "QuantEmbedding",
    "QuantLayer",
    "QuantLinear",
    "QuantizationInfo",
    "QuantizedWeight",
    "attach_info",
    "fold_batch_norm",
    "info",
    "layer_config",
    "quantized_layers",
    "quantized_weight",
    "restore_layer",
    "swap_layer",
]
