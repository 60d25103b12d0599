"""BRECQ: the codes of a block's layers learned together, so that the block puts out what it did in float.

Source: arXiv 2102.05426. Layers are first rounded one by one (:mod:`~fewbit.algorithms.gptq`); then the codes, the
scales and the biases of each block move by gradient descent on the block's output, activations rounded as they will be
(:mod:`~fewbit.algorithms._reconstruction`). A block whose held-back pictures do not gain keeps its first codes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.algorithms import gptq
from fewbit.algorithms._reconstruction import Learned, Part, relative_error
from fewbit.algorithms._reconstruction import _split as split
from fewbit.algorithms._soft_rounding import SoftRounding
from fewbit.calibrate.collect import Progress
from fewbit.calibrate.gram import Statistics
from fewbit.errors import FewbitError
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ("gram",)
#: Blocks are found by their convolutions; a transformer's would be left as GPTQ rounded them.
INSTEAD_FOR_TRANSFORMERS = "autoround"


@dataclass(frozen=True)
class Options:
    """How long and how fast a block learns.

    Attributes:
        steps: Updates a block; 0 leaves what the layers' own rounding gave.
        batch: Windows of one update.
        rate: Adam's rate for the rounding variables.
        biases: Adam's rate for the biases, relative to their mean size.
        drive: How strongly weights are driven to an end, against an output error of 1 (that of the start).
        firmness: How near to the layers' own rounding learning begins, between 0 and 1.
        held_back: Every so manieth window only judges; 0 for none.
        seed: Of the order of windows.
    """

    steps: int = 60
    batch: int = 2
    rate: float = 0.02
    biases: float = 3e-3
    drive: float = 3.0
    firmness: float = 0.8
    held_back: int = 8
    seed: int = 0


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """Quantize a matrix ``[out, K]``: a block of one linear layer, whose output error its input's Gram matrix gives.

    Args:
        weight: Floating matrix.
        spec: The quantization.
        options: Unused, as there is nothing but the layer.
        name: Named in errors.
        statistics: Of the layer's input.

    Raises:
        FewbitError: There are no statistics; NaN, infinity or no values.
    """
    return gptq.quantize_weight(weight, spec, None, name, statistics)


def reconstruct(part: Part, options: Options | None = None, progress: Progress | None = None) -> Learned:
    """Learn a block.

    Args:
        part: Its weights, inputs and float outputs; ``free`` holds the biases.
        options: See :class:`Options`.
        progress: Called with ("reconstruct", steps done, steps in all).

    Raises:
        FewbitError: An option is negative.
    """
    options = options or Options()
    if min(options.steps, options.rate, options.biases, options.drive) < 0 or options.batch < 1:
        raise FewbitError("brecq's steps and rates are not negative, and its batch is 1 or more")
    taught, judged = split(len(part.inputs), options.held_back)
    start = {name: codes.dequantize() for name, codes in part.start.items()}
    before = _loss(part, start, dict(part.free), judged)
    soft = {n: SoftRounding(part.weights[n], codes, n, options.firmness) for n, codes in part.start.items()}
    free = {name: value.detach().clone().requires_grad_(options.biases > 0) for name, value in part.free.items()}
    with torch.enable_grad():
        _descend(part, soft, free, taught, options, progress)
    settled = {name: each.settled() for name, each in soft.items()}
    moved = {name: value.detach() for name, value in free.items()}
    after = _loss(part, {name: codes.dequantize() for name, codes in settled.items()}, moved, judged)
    if not after < before:
        return Learned(dict(part.start), dict(part.free), before, before)
    return Learned(settled, moved, before, after)


def _loss(part: Part, weights: Mapping[str, Tensor], free: Mapping[str, Tensor], windows: Sequence[int]) -> float:
    with torch.no_grad():
        losses = [relative_error(part.forward({**weights, **free}, part.inputs[i]), part.targets[i]) for i in windows]
    return float(torch.stack(losses).mean())


def _descend(
    part: Part,
    soft: Mapping[str, SoftRounding],
    free: Mapping[str, Tensor],
    taught: Sequence[int],
    options: Options,
    progress: Progress | None,
) -> None:
    """Adam on the output error and the penalty that drives weights to an end."""
    groups: list[dict[str, Any]] = [{"params": [each.variable for each in soft.values()], "lr": options.rate}]
    if options.biases > 0:
        groups += [
            {"params": [b], "lr": options.biases * max(float(b.detach().abs().mean()), 1e-3)} for b in free.values()
        ]
    optimizer = torch.optim.Adam(groups)
    rows = sum(each.variable.shape[0] for each in soft.values())
    generator = torch.Generator().manual_seed(options.seed)
    worth: float | None = None
    waiting: list[int] = []
    for step in range(options.steps):
        while len(waiting) < options.batch:
            waiting += [taught[i] for i in torch.randperm(len(taught), generator=generator).tolist()]
        batch, waiting = waiting[: options.batch], waiting[options.batch :]
        for window in batch:
            values = {name: each.weight() for name, each in soft.items()} | dict(free)
            error = relative_error(part.forward(values, part.inputs[window]), part.targets[window]) / len(batch)
            worth = worth or 1 / max(float(error.detach()) * len(batch), 1e-12)
            (error * worth).backward()  # type: ignore[no-untyped-call]
        penalty = torch.stack([each.penalty(step / options.steps) for each in soft.values()]).sum() / rows
        if penalty.requires_grad:
            (options.drive * penalty).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if progress is not None:
            progress("reconstruct", step + 1, options.steps)
