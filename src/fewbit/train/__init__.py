"""Quantization-aware training: fake-quantized layers that train under any loop, and their conversion."""

from fewbit.train.conversion import convert
from fewbit.train.distillation import Distillation
from fewbit.train.lora import add_lora
from fewbit.train.prepare import prepare_qat
from fewbit.train.schedule import freeze

__all__ = ["Distillation", "add_lora", "convert", "freeze", "prepare_qat"]
