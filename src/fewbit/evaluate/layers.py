"""What each quantized layer costs: its weights, its input, and its output, each against the float model.

Both models run on the same batches with hooks on their layers. Sums of squares are kept, outputs only until
the other model has made its own: the memory is that of one batch's layer outputs, whatever the number of
batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import nn

from fewbit.errors import FewbitError
from fewbit.evaluate.error import SplitSums
from fewbit.evaluate.quantizers import input_spec, weight_sums
from fewbit.evaluate.size import model_bytes, parameter_count
from fewbit.evaluate.watch import Watch
from fewbit.nn.kinds import weight_matrix
from fewbit.nn.swap import quantized_layers, quantized_weight


@dataclass(frozen=True)
class QuantizerCost:
    """Errors of one quantizer.

    Attributes:
        rounding_mse: Mean squared error of values that were rounded, over all values.
        clipping_mse: Mean squared error of values that were clamped, over all values.
        clipped_fraction: Share of values that were clamped.
        power: Mean square of the float values; errors divided by it are shares of the signal.
        theory_ratio: Rounding error over the mean of step²/12; None where the format has no uniform step.
    """

    rounding_mse: float
    clipping_mse: float
    clipped_fraction: float
    power: float
    theory_ratio: float | None

    @property
    def rounding_share(self) -> float:
        """Rounding error over signal."""
        return self.rounding_mse / self.power if self.power else 0.0

    @property
    def clipping_share(self) -> float:
        """Clipping error over signal."""
        return self.clipping_mse / self.power if self.power else 0.0


@dataclass(frozen=True)
class LayerCost:
    """What one quantized layer costs.

    Attributes:
        name: Its name in the model.
        kind: Its type in the float model, such as ``"Linear"``.
        weight_spec: How its weights are quantized.
        input_spec: How its input is; ``"float"`` when it is not.
        parameters: Weights and biases of the float layer.
        bytes_before: Of the float layer.
        bytes_after: Of the quantized one: packed codes with padding, scales, zero points, bias.
        weight_sqnr: dB of the weights against the float ones, batch norm folded as in the quantized model.
        output_sqnr: dB of the output in the running model, errors of earlier layers included; None when the
            layer did not run or its output cannot be told apart from what its class makes of it.
        alone_sqnr: dB of the output when this layer alone is quantized, on the float model's input.
        weight: The weight quantizer.
        input: The input quantizer, when it is a static one.
    """

    name: str
    kind: str
    weight_spec: str
    input_spec: str
    parameters: int
    bytes_before: int
    bytes_after: int
    weight_sqnr: float
    output_sqnr: float | None
    alone_sqnr: float | None
    weight: QuantizerCost
    input: QuantizerCost | None


class LayerPass:
    """Runs both models batch by batch and adds up what each layer does.

    Args:
        reference: The float model, batch norm folded where the quantized model's was.
        quantized: The quantized model.

    Raises:
        FewbitError: A quantized layer has no counterpart in the float model.
    """

    def __init__(self, reference: nn.Module, quantized: nn.Module) -> None:
        self.reference, self.quantized = reference, quantized
        floats = dict(reference.named_modules(remove_duplicate=False))
        self._watched = []
        for name, layer in quantized_layers(quantized).items():
            if name not in floats:
                raise FewbitError(
                    f"the quantized layer {name!r} is not in the original: the models do not belong together"
                )
            self._watched.append(Watch(name, floats[name], layer))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watch the layers while the two models run, for each batch the float model first."""
        with ExitStack() as stack:
            for watch in self._watched:
                stack.enter_context(watch.hooked())
            yield

    def end_batch(self) -> None:
        """Drop what waits for a counterpart that never came."""
        for watch in self._watched:
            watch.waiting.clear()

    def costs(self) -> tuple[LayerCost, ...]:
        """One entry a quantized layer, in the model's order."""
        return tuple(_cost(watch) for watch in self._watched)


def _cost(watch: Watch) -> LayerCost:
    tensor = quantized_weight(watch.after).weight_qtensor()
    energies, weight = weight_sums(weight_matrix(watch.before), tensor)
    return LayerCost(
        name=watch.name,
        kind=type(watch.before).__name__,
        weight_spec=str(tensor.spec),
        input_spec=input_spec(watch.after),
        parameters=parameter_count(watch.before),
        bytes_before=model_bytes(watch.before),
        bytes_after=model_bytes(watch.after),
        weight_sqnr=energies.sqnr,
        output_sqnr=watch.output.sqnr if watch.output.count else None,
        alone_sqnr=watch.alone.sqnr if watch.alone.count else None,
        weight=_quantizer_cost(weight),
        input=_quantizer_cost(watch.input) if watch.input.count else None,
    )


def _quantizer_cost(sums: SplitSums) -> QuantizerCost:
    split = sums.split
    return QuantizerCost(split.rounding_mse, split.clipping_mse, split.clipped_fraction, sums.power, sums.theory_ratio)
