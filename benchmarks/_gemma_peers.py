"""The peers of ``gemma.py``, each in its own words; those that are not installed are left out."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import _gemma
import torch
from torch import nn

Make = Callable[[nn.Module], tuple[nn.Module, float]]


def found(at: str) -> Iterator[tuple[str, Make]]:
    """Names and makers of the peers that are installed, for ``W4``, ``W3`` or ``W2``."""
    bits, group = int(at[1:]), 64 if at == "W2" else 128
    if importlib.util.find_spec("llmcompressor"):
        for symmetric in (True, False):
            # As stored by compressed-tensors: 16-bit scales; zero points of the codes' width.
            size = bits + (16 + (0 if symmetric else bits)) / group
            name = f"llm-compressor GPTQ {'sym' if symmetric else 'asym'}"
            yield name, lambda model, s=symmetric, size=size: (_llm_compressor(model, bits, group, s), size)


def _llm_compressor(model: Any, bits: int, group: int, symmetric: bool) -> nn.Module:
    """Its GPTQ on every linear layer but the last, in place."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from transformers import AutoTokenizer

    arguments = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy="group", group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    modifier = GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"])
    rows = [window[0, :-1].tolist() for window in _gemma.calibration()]
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    oneshot(
        model=model,
        dataset=data,
        recipe=[modifier],
        processor=AutoTokenizer.from_pretrained(_gemma.folder()),
        max_seq_length=len(rows[0]),
        num_calibration_samples=len(rows),
        pipeline="sequential",
    )
    with torch.no_grad():
        for module in model.modules():
            scheme_of = getattr(module, "quantization_scheme", None)
            if scheme_of is not None:
                from compressed_tensors.quantization.lifecycle.forward import fake_quantize

                zero = getattr(module, "weight_zero_point", None)
                module.weight.copy_(fake_quantize(module.weight, module.weight_scale, zero, scheme_of.weights))
                module.quantization_enabled = False
    return model
