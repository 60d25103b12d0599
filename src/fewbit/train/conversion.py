"""convert(): from a trained model to the quantized one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.nn import attach_info, info, kinds
from fewbit.nn.build import build_layers
from fewbit.nn.statistics import LayerStatistics
from fewbit.nn.swap import replace_module
from fewbit.numbers.qtensor import QTensor
from fewbit.train.fast_path import unblock_fused_layers
from fewbit.train.layers import float_layer, quantized_parts, trained_layers
from fewbit.train.lora import has_lora, merge_lora
from fewbit.train.schedule import detach_schedule


def convert(model: nn.Module) -> nn.Module:
    """The quantized model that a model of :func:`fewbit.prepare_qat` (or ``add_lora``) trained for.

    It has the same modules as the result of :func:`fewbit.quantize`, and its outputs equal those of the trained model
    in evaluation mode to the last bit.

    Args:
        model: Trained; it is not changed. Wrappers (``DistributedDataParallel``, ``torch.compile``) are taken off.

    Returns:
        A copy in evaluation mode.

    Raises:
        FewbitError: The model was not prepared, or a static range never saw data.
    """
    model = _unwrapped(model)
    if not isinstance(model, nn.Module) or not (trained_layers(model) or has_lora(model)):
        raise FewbitError("convert takes a model that prepare_qat made; to quantize without training, use quantize")
    known = copy.deepcopy(next((found for found in map(info, model.modules()) if found is not None), None))
    work = copy.deepcopy(model).eval()
    work, kept = merge_lora(work)
    detach_schedule(work)
    unblock_fused_layers(work)
    result = _converted(work)
    if known is not None:
        if kept:
            known.notes.append(f"adapters beside the base stay in float, as their sum has no codes: {', '.join(kept)}")
        attach_info(result, known)
    return result.requires_grad_(False)


def _converted(work: nn.Module) -> nn.Module:
    """Every layer in training replaced by its quantized form, in place."""
    plans, weights, inputs = [], {}, {}
    done: dict[tuple[object, ...], tuple[Tensor, QTensor]] = {}
    for name, layer in trained_layers(work).items():
        matrix, codes, quantizer = quantized_parts(layer)
        key = (*kinds.matrix_key(layer), id(layer.weight_quantizer))
        weights[name] = done.setdefault(key, (matrix, codes))  # tied layers share one object
        inputs[name] = quantizer
        plans.append(replace(layer.plan, name=name))
    for layer in list(trained_layers(work).values()):
        work = replace_module(work, layer, float_layer(layer, hooks=True))
    statistics = {plan.name: LayerStatistics(plan.name, None, False) for plan in plans}
    return build_layers(work, plans, weights, inputs, statistics)[0]


def _unwrapped(model: Any) -> Any:
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner
