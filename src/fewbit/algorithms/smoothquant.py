"""SmoothQuant: moving the difficulty of activations into weights (Xiao et al., arXiv 2211.10438).

A few channels of a layer's input are much larger than the rest and take the codes of all others. The input is divided
by ``s`` and the columns of all layers that share it are multiplied by it (equation 3), with
``s_j = max|x_j|^α / max|w_j|^(1−α)`` (equation 4). Here the migration strength α is searched for each group of layers,
for the least output error of inputs and weights quantized as they will be; the magnitude of a channel is its maximum,
or its root mean square where that is better. No smoothing is among the candidates.

Weights are then rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.algorithms import rtn
from fewbit.algorithms._channels import evenly, normalized, pooled
from fewbit.calibrate.gram import Statistics
from fewbit.calibrate.rows import Rows
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """How finely to search.

    Attributes:
        calibrator: How the ranges of weights are chosen, None: as round-to-nearest.
        calibrator_options: The calibrator's ``Options``.
        grid: Steps of α from 0 to 1.
        rows: At most so many rows of a weight take part in the search.
        tokens: At most so many of the sampled inputs.
    """

    calibrator: str | None = None
    calibrator_options: Any = None
    grid: int = 10
    rows: int = 256
    tokens: int = 256


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """Round to nearest; the smoothing was done before (:func:`search_scale`).

    Args:
        weight: Floating tensor.
        spec: The quantization.
        options: See :class:`Options`.
        name: Named in errors.
        statistics: Not used.

    Raises:
        FewbitError: NaN, infinity or no values; a scale that float32 cannot hold.
    """
    options = options or Options()
    return rtn.quantize_weight(weight, spec, rtn.Options(options.calibrator, options.calibrator_options), name)


def search_scale(
    weights: Sequence[Tensor],
    specs: Sequence[QSpec],
    activations: QSpec,
    inputs: Rows,
    options: Options | None = None,
    channels: Tensor | None = None,
    name: str = "weight",
) -> Tensor:
    """The scale of each channel with which the layers that share an input lose least.

    Args:
        weights: Floating ``[out, K]`` of each layer.
        specs: The quantization of each.
        activations: The quantization of the input, per token or per tensor.
        inputs: A sample of the input.
        options: See :class:`Options`.
        channels: int64 ``[K]``, the channel of the feeding module that each input channel comes from; None: itself.
        name: Named in errors.

    Returns:
        float32 ``[channels of the feeding module]``, positive; all ones where smoothing does not help.
    """
    options = options or Options()
    channels = torch.arange(inputs.columns) if channels is None else channels
    few = [evenly(weight.to(torch.float32), options.rows) for weight in weights]
    problem = _Problem(few, specs, activations, inputs.rows[: options.tokens], name)
    best = torch.ones(int(channels.max()) + 1)
    least = problem.loss(best[channels])
    for scale in _candidates(few, inputs, channels, options.grid):
        loss = problem.loss(scale[channels])
        if loss < least:
            best, least = scale, loss
    return best


def _candidates(weights: Sequence[Tensor], inputs: Rows, channels: Tensor, grid: int) -> list[Tensor]:
    of_weights = torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    of_weights = pooled(of_weights, channels, "amax").clamp(min=1e-5)
    magnitudes = (inputs.max_abs, inputs.rows.square().mean(dim=0).sqrt())
    found = []
    for magnitude in magnitudes:
        of_inputs = pooled(magnitude, channels, "amax").clamp(min=1e-5)
        for step in range(grid + 1):
            alpha = step / grid
            found.append(normalized(of_inputs**alpha / of_weights ** (1 - alpha)))
    return found


class _Problem:
    """The output error of layers whose input and weights are quantized, relative to each layer's output."""

    def __init__(
        self, weights: Sequence[Tensor], specs: Sequence[QSpec], activations: QSpec, x: Tensor, name: str
    ) -> None:
        self.weights, self.specs, self.activations, self.x, self.name = weights, specs, activations, x, name
        self.outputs = [x @ weight.T for weight in weights]

    def loss(self, scale: Tensor) -> float:
        """``Σ ‖Q(x/s) Q(W·s)ᵀ − x Wᵀ‖² / ‖x Wᵀ‖²`` over the layers."""
        x = rtn.quantize_weight(self.x / scale, self.activations, rtn.Options("minmax"), self.name).dequantize()
        total = 0.0
        for weight, spec, output in zip(self.weights, self.specs, self.outputs):
            w = rtn.quantize_weight(weight * scale, spec, rtn.Options("minmax"), self.name).dequantize()
            error = (x @ w.T - output).square().sum(dtype=torch.float64)
            total += float(error / output.square().sum(dtype=torch.float64).clamp(min=1e-30))
        return total
