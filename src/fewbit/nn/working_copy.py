"""The copy of the user's model that is worked on."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from fewbit.calibrate.collect import call_named
from fewbit.errors import FewbitError
from fewbit.nn.check import first_tensor
from fewbit.nn.fold import FoldResult, fold_batch_norm
from fewbit.nn.swap import in_training, quantized_layers


def working_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode.

    Raises:
        FewbitError: The model is quantized already, is not an eager module, or has no values yet.
    """
    if isinstance(model, torch.jit.ScriptModule) or type(model).__module__.startswith("torch.export"):
        raise FewbitError("scripted and exported models cannot be quantized; pass the eager nn.Module they came from")
    if quantized_layers(model):
        raise FewbitError("the model is quantized already; quantize the float model")
    if in_training(model):
        raise FewbitError("the model is in training for its quantized form; convert it, or quantize the float model")
    for name, parameter in model.named_parameters():
        if torch.nn.parameter.is_lazy(parameter) or parameter.is_meta:
            raise FewbitError(f"{name} has no values yet (a lazy layer or the meta device); initialise the model first")
    try:
        return copy.deepcopy(model).eval()
    except (RuntimeError, TypeError, NotImplementedError, AttributeError) as error:
        raise FewbitError(
            f"the model cannot be copied ({str(error).splitlines()[0]}); remove weight_norm, prune and the like from "
            "its layers first (torch.nn.utils.remove_weight_norm, prune.remove)"
        ) from error


def fold_checked(model: nn.Module, first: Any) -> FoldResult:
    """Fold batch norm in place, checked on the first batch of data where there is one."""
    if first is None:
        return fold_batch_norm(model)
    return fold_batch_norm(model, lambda m: first_tensor(call_named(m, first, "calibration batch 1")))
