"""The algorithm that a user gets who names none."""

from __future__ import annotations

from torch import nn

from fewbit import algorithms
from fewbit.nn.prepare import split_name
from fewbit.nn.tune import LARGEST
from fewbit.recipe import Recipe

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


def resolve(algorithm: str, recipe: Recipe, blocks: bool, data: bool) -> str:
    """The name itself, or what ``"auto"`` stands for.

    Layers of language models lose more of their output by min-max ranges and by MSE clips than by ``gptq``
    (``docs/algorithms.md``), so integer weights of fewer than 8 bits get it where there is data, and ``hqq`` elsewhere.
    Everything else, and whoever chose a calibrator for weights, is rounded to nearest.

    Args:
        algorithm: As the user named it.
        recipe: What is to be done.
        blocks: Whether the model has blocks that are quantized one after another.
        data: Whether there is calibration data.

    Raises:
        FewbitError: A wrong name.
    """
    check_name(algorithm)
    if algorithm != AUTO:
        return algorithm
    default = recipe.default()
    specs = [default.weights, *(rule.apply(default).weights for rule in recipe.rules if not rule.skip)]
    few = any(spec.format.is_integer and spec.bits < _PLAIN_FROM_BITS for spec in specs)
    if not (few and blocks) or recipe.weight_calibrator is not None:
        return "rtn"
    return "gptq" if data and all(spec.format.is_integer for spec in specs) else "hqq"


def tunes(algorithm: str, model: nn.Module) -> bool:
    """Whether the algorithm tunes the quantized model as a whole, and the model is small enough for that."""
    if algorithm == AUTO or not getattr(algorithms.get(split_name(algorithm)[1]), "TUNES", False):
        return False
    return sum(parameter.numel() for parameter in model.parameters()) <= LARGEST
