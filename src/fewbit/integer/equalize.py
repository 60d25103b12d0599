"""Cross-layer equalization and high-bias absorption on a traced float network, in place (arXiv 1906.04721, sections 4.1
and 4.1.3).

ReLU and all that scales with its input lets any factor through. ReLU6 and other clips do not scale: the paper replaces
them by ReLU; here a channel that reaches the clip stays as it is, and one that does not (its mean and some deviations
lie below, by batch norm) is scaled as far as it stays below, so that the network computes what it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.algorithms import equalize as rule
from fewbit.integer.chains import Chain

#: A channel counts as below a clip when its mean and so many deviations are: real activations have long tails.
_DEVIATIONS = 20.0
_SWEEPS = 40
_SETTLED = 1e-3


@dataclass
class Layer:
    """A layer's numbers in float64 while they move.

    Attributes:
        weight: ``[out, in/groups, *kernel]``.
        bias: ``[out]``, None where the layer has none.
        groups: Of a convolution, else 1.
        mean: Of each output before the activation function, by the batch norm that was folded; None without.
        std: Its standard deviation.
    """

    weight: Tensor
    bias: Tensor | None
    groups: int
    mean: Tensor | None
    std: Tensor | None


Moments = Mapping[str, tuple[Tensor, Tensor]]


def equalize(model: nn.Module, chains: list[Chain], moments: Moments, absorb: bool, scale: bool = True) -> Moved:
    """Equalize all chains of a model, and hand high biases on.

    Args:
        model: Traced, its batch norms folded; weights and biases are changed in place.
        chains: Its chains.
        moments: Mean and standard deviation of the outputs of the layers that had a batch norm.
        absorb: Hand biases on.
        scale: Equalize.

    Returns:
        What was done.
    """
    names = dict.fromkeys(name for chain in chains for name in (chain.first, chain.second))
    layers = {name: _read(model.get_submodule(name), moments.get(name)) for name in names}
    usable = [chain for chain in chains if _scales(chain, layers)] if scale else []
    for _ in range(_SWEEPS if usable else 0):
        if max([_even_out(chain, layers) for chain in usable]) < _SETTLED:
            break
    handed = [chain for chain in chains if absorb and _absorb(chain, layers)]
    for name in dict.fromkeys(name for chain in (*usable, *handed) for name in (chain.first, chain.second)):
        _write(model.get_submodule(name), layers[name])
    after = {n: (each.mean, each.std) for n, each in layers.items() if each.mean is not None and each.std is not None}
    return Moved(len(usable), len(handed), {**moments, **after})


@dataclass(frozen=True)
class Moved:
    """What :func:`equalize` did.

    Attributes:
        equalized: How many pairs of layers.
        absorbed: How many pairs of layers a bias was handed on in.
        moments: Mean and standard deviation of the layers' outputs now.
    """

    equalized: int
    absorbed: int
    moments: Moments


def _read(module: Any, moments: tuple[Tensor, Tensor] | None) -> Layer:
    bias = None if module.bias is None else module.bias.detach().double().clone()
    mean, std = (None, None) if moments is None else (each.double() for each in moments)
    return Layer(module.weight.detach().double().clone(), bias, getattr(module, "groups", 1), mean, std)


def _write(module: Any, layer: Layer) -> None:
    weight = module.weight
    module.weight = nn.Parameter(layer.weight.to(weight.dtype), requires_grad=False)
    if layer.bias is not None:
        module.bias = nn.Parameter(layer.bias.to(weight.dtype), requires_grad=False)


def _scales(chain: Chain, layers: Mapping[str, Layer]) -> bool:
    """Whether factors can pass between the two: nothing below 0 is clipped but at 0, and a clip above is in sight."""
    if chain.low not in (0.0, -float("inf")):
        return False
    return chain.high == float("inf") or (chain.high > 0 and layers[chain.first].mean is not None)


def _even_out(chain: Chain, layers: Mapping[str, Layer]) -> float:
    """Scale one chain; the largest change of a factor, in powers of 2."""
    first, second = layers[chain.first], layers[chain.second]
    least = None
    if chain.high != float("inf"):
        top = _top(first)
        least = torch.where(top <= chain.high, top.clamp(min=1e-6) / chain.high, torch.inf)
    factor = rule.factors(rule.row_range(first.weight), rule.column_range(second.weight, second.groups), least)
    first.weight = first.weight / factor.reshape(-1, *[1] * (first.weight.dim() - 1))
    first.bias = None if first.bias is None else first.bias / factor
    first.mean = None if first.mean is None else first.mean / factor
    first.std = None if first.std is None else first.std / factor
    second.weight = rule.scaled_columns(second.weight, second.groups, factor)
    return float(factor.log2().abs().max())


def _top(layer: Layer) -> Tensor:
    """What each output of a layer hardly ever exceeds."""
    assert layer.mean is not None
    assert layer.std is not None
    return layer.mean + _DEVIATIONS * layer.std


def _absorb(chain: Chain, layers: Mapping[str, Layer]) -> bool:
    """Hand the part of the first layer's bias that its outputs never fall below to the second; whether there was one.

    Not through a border, whose zeros would have to become −c; not for channels that a clip above may reach.
    """
    first, second = layers[chain.first], layers[chain.second]
    if chain.border or chain.low > 0 or first.mean is None or first.std is None:
        return False
    if first.bias is None or second.bias is None:
        return False
    amount = rule.absorbed(first.mean, first.std)
    amount = torch.where(_top(first) <= chain.high, amount, 0.0)
    if not bool((amount > 0).any()):
        return False
    first.bias, first.mean = first.bias - amount, first.mean - amount
    second.bias = second.bias + rule.shift(second.weight, second.groups, amount)
    return True
