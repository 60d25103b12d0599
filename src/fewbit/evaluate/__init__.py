"""What quantization costs: error by layer and of the whole model, size, speed."""

from __future__ import annotations

from fewbit.evaluate.error import (
    ErrorSplit,
    SignalNoise,
    SplitSums,
    cosine,
    error_split,
    sqnr,
    top1_agreement,
)
from fewbit.evaluate.layers import LayerCost, LayerPass, QuantizerCost
from fewbit.evaluate.outputs import floating_outputs
from fewbit.evaluate.size import LayerSize, file_bytes, layer_sizes, model_bytes
from fewbit.evaluate.speed import Timing, interleaved_times
from fewbit.evaluate.whole import OutputCost, OutputErrors

__all__ = [
    "ErrorSplit",
    "LayerCost",
    "LayerPass",
    "LayerSize",
    "OutputCost",
    "OutputErrors",
    "QuantizerCost",
    "SignalNoise",
    "SplitSums",
    "Timing",
    "cosine",
    "error_split",
    "file_bytes",
    "floating_outputs",
    "interleaved_times",
    "layer_sizes",
    "model_bytes",
    "sqnr",
    "top1_agreement",
]
