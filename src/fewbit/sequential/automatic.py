"""The algorithm that a user gets who names none."""

from __future__ import annotations

from torch import nn

from fewbit import algorithms
from fewbit.models import layout
from fewbit.nn.prepare import split_name
from fewbit.nn.tune import LARGEST
from fewbit.recipe import Recipe, Scheme

AUTO = "auto"
#: From this width on rounding to nearest costs nothing to speak of.
_PLAIN_FROM_BITS = 8


def check_name(algorithm: str) -> None:
    """Refuse a name that means nothing.

    Raises:
        FewbitError: It is neither ``"auto"`` nor made of names of algorithms.
    """
    if algorithm != AUTO:
        split_name(algorithm)


def resolve(algorithm: str, recipe: Recipe, blocks: bool, data: bool, scales: bool = False) -> str:
    """The name itself, or what ``"auto"`` stands for.

    Layers of language models lose more of their output by min-max ranges and by MSE clips than by ``gptq``
    (``docs/algorithms.md``), so integer weights of fewer than 8 bits get it where there is data, and ``hqq`` elsewhere.
    Where activations are integers as well, ``smoothquant`` scales them if there is data and the model is known. All
    else, and whoever chose a calibrator for weights, is rounded to nearest.

    Args:
        algorithm: As the user named it.
        recipe: What is to be done.
        blocks: Whether the model has blocks that are quantized one after another.
        data: Whether there is calibration data.
        scales: Whether scales can be moved between the model's layers, see :func:`scalable`.

    Raises:
        FewbitError: A wrong name.
    """
    check_name(algorithm)
    if algorithm != AUTO:
        return algorithm
    default = recipe.default()
    schemes = [default, *(rule.apply(default) for rule in recipe.rules if not rule.skip)]
    specs = [scheme.weights for scheme in schemes]
    few = any(spec.format.is_integer and spec.bits < _PLAIN_FROM_BITS for spec in specs)
    if not blocks or recipe.weight_calibrator is not None:
        return "rtn"
    if few:
        return "gptq" if data and all(spec.format.is_integer for spec in specs) else "hqq"
    return "smoothquant" if data and scales and all(map(_dynamic_integers, schemes)) else "rtn"


def _dynamic_integers(scheme: Scheme) -> bool:
    return scheme.dynamic and scheme.activations is not None and scheme.activations.format.is_integer


def scalable(model: nn.Module, streamed: bool = False) -> bool:
    """Whether scales can be moved between a model's layers: there is a table of its family.

    Args:
        model: Also one on the meta device.
        streamed: Whether it would have to be loaded for that, which is done up to 1e9 parameters.
    """
    if streamed and sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
        return False
    return hasattr(model, "config") and layout(model).family != "generic"


def tunes(algorithm: str, model: nn.Module) -> bool:
    """Whether the algorithm tunes the quantized model as a whole, and the model is small enough for that."""
    if algorithm == AUTO or not getattr(algorithms.get(split_name(algorithm)[1]), "TUNES", False):
        return False
    return sum(parameter.numel() for parameter in model.parameters()) <= LARGEST
