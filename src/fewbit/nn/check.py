"""The last check of a quantized model: its outputs on real data are finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibrate.collect import call_named
from fewbit.errors import FewbitError
from fewbit.nn.preserved import preserved_state
from fewbit.nn.swap import quantized_layers


def first_tensor(output: Any) -> Tensor | None:
    """The first floating tensor in a model's output, however it is wrapped."""
    leaves = torch.utils._pytree.tree_leaves(dict(output) if hasattr(output, "keys") else output)
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()), None)


def check_outputs(model: nn.Module, quantized: nn.Module, batch: Any) -> Any:
    """Run the quantized model once.

    Returns:
        What it gave.

    Raises:
        FewbitError: An output is NaN or infinite although the float model's is not; the first layer that made it is
            named.
    """
    blame: list[str] = []
    hooks = [
        layer.register_forward_hook(
            lambda _m, _a, output, name=name: blame.append(name) if not _finite(output) else None
        )
        for name, layer in quantized_layers(quantized).items()
    ]
    try:
        with preserved_state(quantized):
            output = call_named(quantized, batch, "calibration batch 1 after it was quantized")
    finally:
        for hook in hooks:
            hook.remove()
    found = first_tensor(output)
    if found is None or _finite(found):
        return output
    modes = [(module, module.training) for module in model.modules()]
    with preserved_state(model):
        float_output = call_named(model.eval(), batch, "calibration batch 1")
    for module, training in modes:
        module.training = training
    wanted = first_tensor(float_output)
    if wanted is not None and not _finite(wanted):
        masked = wanted.isneginf()
        others = wanted.where(~masked, 0)
        alike = found.shape == wanted.shape and _finite(found.where(~masked, 0))
        if not bool(masked.all()) and _finite(others) and alike:
            return output  # the model means it: a mask
        raise FewbitError(
            "the float model's own outputs are not finite on the calibration data; mend the model or the data"
        )
    where = f"layer {blame[0]} is the first whose output is not finite" if blame else "no quantized layer is to blame"
    raise FewbitError(f"the quantized model's outputs are not finite: {where}; skip that layer with a rule")


def _finite(value: Any) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    total = value.sum(dtype=torch.float32)  # one pass over logits that may be half a gigabyte; seldom overflows
    return bool(torch.isfinite(total)) or bool(torch.isfinite(value).all())
