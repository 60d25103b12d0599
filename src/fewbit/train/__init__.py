"""Quantization-aware training: fake-quantized layers that train under any loop, and their conversion."""

from fewbit.train.conversion import convert
from fewbit.train.prepare import prepare_qat
from fewbit.train.schedule import freeze

__all__ = ["convert", "freeze", "prepare_qat"]
