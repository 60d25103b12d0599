"""A quantized PyTorch model's outputs against the float model's, see :mod:`.verdict`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibrate.collect import call_named
from fewbit.evaluate import verdict
from fewbit.evaluate.outputs import floating_outputs
from fewbit.nn.preserved import preserved_state
from fewbit.nn.swap import quantized_layers

_VALUES = 2**20  # of an output: a language model's logits may be half a gigabyte


def doubt(
    model: nn.Module,
    quantized: nn.Module,
    batch: Any,
    measured: dict[str, Tensor] | None = None,
    *,
    rotated: bool = False,
) -> str | None:
    """Run both models once, and say in a sentence if hardly anything is left of an output.

    Args:
        model: The float model; its modes and buffers stay as they are.
        quantized: Of the same module names.
        batch: One that the model can be called with.
        measured: :func:`some_values` of what the quantized model gives for it, where it ran already.
        rotated: The layers of the quantized model give something else than the float model's, so that none is named.
    """
    before = some_values(_call(model, batch))
    after = some_values(_call(quantized, batch)) if measured is None else measured
    return verdict.warning(
        verdict.kept(before, after),
        lambda: verdict.kept(before, some_values(_call(model, batch))),
        (lambda: None) if rotated else (lambda: _first_lost(model, quantized, batch)),
    )


def some_values(output: Any) -> dict[str, Tensor]:
    """Some values of each floating tensor in a model's output, ``[samples, values]``, spread evenly."""
    return {name: _spread(value.detach()) for name, value in floating_outputs(output).items()}


def _spread(value: Tensor) -> Tensor:
    rows = value.flatten(1) if value.dim() > 1 else value.reshape(1, -1)  # flatten takes 0 samples, too
    return rows[:, :: value.numel() // _VALUES + 1].clone()


def _first_lost(model: nn.Module, quantized: nn.Module, batch: Any) -> str | None:
    floats = dict(model.named_modules())
    weights = {name: getattr(floats.get(name), "weight", None) for name in quantized_layers(quantized)}
    axes = {name: 1 - weight.dim() for name, weight in weights.items() if isinstance(weight, Tensor)}
    before, after = (_layer_outputs(each, axes, batch) for each in (model, quantized))
    name = verdict.first_lost({name: (before[name], after[name]) for name in before if name in after})
    return None if name is None else f"layer {name}"


def _layer_outputs(model: nn.Module, axes: dict[str, int], batch: Any) -> dict[str, Tensor]:
    """Some of each named layer's output at its first call, in the order of the calls; ``axes`` are the channels'."""
    found: dict[str, Tensor] = {}

    def see(name: str, output: Any) -> None:
        if name not in found and isinstance(output, Tensor):
            found[name] = verdict.thinned(output, axes[name])

    hooks = [
        module.register_forward_hook(lambda _m, _a, output, name=name: see(name, output))
        for name, module in model.named_modules()
        if name in axes
    ]
    try:
        _call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _call(model: nn.Module, batch: Any) -> Any:
    with _evaluating(model), preserved_state(model):
        return call_named(model, batch, "calibration batch 1")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
