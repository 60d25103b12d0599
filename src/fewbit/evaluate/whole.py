"""The outputs of a whole model against those of its original, batch by batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.evaluate.error import SignalNoise, cosine, top1_agreement
from fewbit.evaluate.outputs import floating_outputs, is_classification


@dataclass(frozen=True)
class OutputCost:
    """The error of one output of the model.

    Attributes:
        name: Its name in the model's result; ``"output"`` for a bare tensor.
        sqnr: dB over all values.
        cosine: Mean cosine similarity over samples.
        top1: Share of equal top-1 predictions; None when the output holds no class scores.
    """

    name: str
    sqnr: float
    cosine: float
    top1: float | None


@dataclass
class _Running:
    energies: SignalNoise = field(default_factory=SignalNoise)
    cosine_sum: float = 0.0
    samples: int = 0
    top1_sum: float = 0.0
    predictions: int = 0

    def add(self, reference: Tensor, measured: Tensor, classify: bool) -> None:
        samples = reference.shape[0] if reference.dim() > 1 else 1
        self.energies.add(reference, measured)
        self.cosine_sum += cosine(reference, measured) * samples
        self.samples += samples
        if classify:
            rows = math.prod(reference.shape[:-1])
            self.top1_sum += top1_agreement(reference, measured) * rows
            self.predictions += rows

    def cost(self, name: str) -> OutputCost:
        top1 = self.top1_sum / self.predictions if self.predictions else None
        return OutputCost(name, self.energies.sqnr, self.cosine_sum / max(self.samples, 1), top1)


class OutputErrors:
    """Running errors of every floating output of a model."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self.batches = 0

    def add(self, reference: object, measured: object) -> None:
        """Count in what the two models returned for one batch (see `floating_outputs`).

        Raises:
            FewbitError: They returned other outputs or shapes, none at all, or NaN or infinity where the
                reference is finite.
        """
        before, after = floating_outputs(reference), floating_outputs(measured)
        if not before:
            raise FewbitError("the model returns no floating tensor, so there is nothing to compare")
        for name, value in before.items():
            _check(name, value, after.get(name))
            self._running.setdefault(name, _Running()).add(value, after[name], is_classification(name, value))
        self.batches += 1

    @property
    def costs(self) -> tuple[OutputCost, ...]:
        """One entry an output, in the model's order."""
        return tuple(running.cost(name) for name, running in self._running.items())

    @property
    def total_sqnr(self) -> float:
        """dB over the values of all outputs together."""
        total = SignalNoise()
        for running in self._running.values():
            total = total.merge(running.energies)
        return total.sqnr

    @property
    def main(self) -> OutputCost:
        """The first output with class scores, or else the first output."""
        return next((cost for cost in self.costs if cost.top1 is not None), self.costs[0])

    @property
    def samples(self) -> int:
        """Samples seen in the first output."""
        return next(iter(self._running.values())).samples if self._running else 0


def _check(name: str, before: Tensor, after: Tensor | None) -> None:
    if after is None or after.shape != before.shape:
        found = "missing" if after is None else f"of shape {tuple(after.shape)}"
        raise FewbitError(
            f"output {name!r} is {found} in the quantized model and of shape {tuple(before.shape)} in the "
            "original, so they are not the same model"
        )
    if not bool(after.isfinite().all()) and bool(before.isfinite().all()):
        raise FewbitError(f"output {name!r} of the quantized model holds NaN or infinity")
