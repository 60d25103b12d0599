"""What the data tells of a model's layers: one pass over the float graph, and a part of it kept for a second look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewbit.calibrate.collect import Progress
from fewbit.calibrate.kept import Kept
from fewbit.calibrate.statistic import Statistic
from fewbit.onnxgraph import observe
from fewbit.onnxgraph.grams import Grams
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.means import Means

if TYPE_CHECKING:
    from fewbit.onnxpipeline.quantize import Job


@dataclass(frozen=True)
class Inputs:
    """The statistics of layers' inputs.

    Attributes:
        model: The float model that they were taken in, which stays as it is.
        layers: Its layers, by name.
        means: Mean inputs, where biases are corrected.
        grams: Gram matrices, where the algorithm weighs errors by them.
        data: What was seen.
        corrected: Names of the layers whose biases are moved.
    """

    model: Any
    layers: dict[str, Layer]
    means: Means | None
    grams: Grams | None
    data: Kept
    corrected: frozenset[str]

    @classmethod
    def wanted(cls, job: Job, layers: Sequence[Layer], data: Iterable[Any], static: Sequence[Layer] = ()) -> Inputs:
        """Nothing seen yet of these layers.

        What is added behind a MatMul with ``static`` activations stays: there the mean error is that of a few tokens
        whose values lie beyond the range, and spread over all it does harm (MiniLM at W8A8: 18.6 dB became 14.5).
        """
        movable = [la for la in layers if la.bias_at is not None and not (la.kind == "MatMul" and la in static)]
        corrected = frozenset(la.name for la in movable) if job.settings.bias_correction else frozenset()
        means = Means([la for la in layers if la.name in corrected]) if corrected else None
        grams = Grams(list(layers), centered=corrected) if job.wants_grams() else None
        return cls(job.model, dict(job.layers), means, grams, Kept(data), corrected)

    def observe(self, statistics: dict[str, list[Statistic]], progress: Progress | None) -> None:
        """Go through the data, for these statistics of tensors as well.

        Raises:
            FewbitError: There is none, the model fails on it, or a tensor holds NaN or infinity.
        """
        observe.observe(self.model, statistics, self.data, progress, means=self.means, grams=self.grams)
