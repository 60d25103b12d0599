"""A model's layers with their exact bytes, as they are, at other widths, and as a recipe would make them.

The recipe's bytes are computed from shapes alone, the way :class:`~fewbit.numbers.qtensor.QTensor` counts
them; nothing is quantized. Biases that bias correction adds to layers without one are not in them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from fewbit.evaluate.size import LayerSize, layer_sizes
from fewbit.nn import fold_batch_norm, kinds
from fewbit.nn.fold import FoldResult
from fewbit.nn.plan import check_plans, join_tied
from fewbit.nn.statistics import dynamic_spec
from fewbit.numbers.theory import packed_bytes
from fewbit.recipe import LayerPlan, Recipe, Scheme

#: The columns of the table that need no recipe: name and bits.
WIDTHS = (("fp32", 32), ("fp16", 16), ("int8", 8), ("int4", 4))

_STATIC_QUANTIZER_BYTES = 4  # a float32 scale; a zero point takes as many again, as int32


@dataclass(frozen=True)
class Planned:
    """What a recipe does to one layer.

    Attributes:
        weights: The spec of the weights; ``"float"`` when they stay as they are.
        input: The spec of the input, or ``"float"``.
        nbytes: Exact bytes afterwards.
        reason: Which part of the recipe said so.
    """

    weights: str
    input: str
    nbytes: int
    reason: str


@dataclass(frozen=True)
class InspectedLayer:
    """One layer as it is, and what the recipe would do to it (None without a recipe)."""

    size: LayerSize
    planned: Planned | None


@dataclass(frozen=True)
class Inspection:
    """A model layer by layer."""

    layers: tuple[InspectedLayer, ...]

    @property
    def parameters(self) -> int:
        """Of the whole model, tied ones once."""
        return sum(layer.size.parameters for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Exact bytes as it is."""
        return sum(layer.size.nbytes for layer in self.layers)

    @property
    def planned_bytes(self) -> int | None:
        """Exact bytes under the recipe."""
        planned = [layer.planned for layer in self.layers if layer.planned is not None]
        return sum(plan.nbytes for plan in planned) if planned else None

    def bytes_at(self, bits: int) -> int:
        """Bytes with every value of every layer at `bits` bits, without scales."""
        return sum(layer.size.bytes_at(bits) for layer in self.layers)


def inspect_model(model: nn.Module, recipe: Recipe | None = None) -> Inspection:
    """Look at a model.

    Args:
        model: Float or quantized; it is not changed.
        recipe: Also tell what it would do to a float model.

    Raises:
        FewbitError: The recipe does not fit the model.
    """
    sizes = layer_sizes(model)
    if recipe is None:
        return Inspection(tuple(InspectedLayer(size, None) for size in sizes))
    planned = _planned(model, recipe)
    gone = Planned("float", "float", 0, "folded into the layer before")
    return Inspection(tuple(InspectedLayer(size, planned.get(size.name, gone)) for size in sizes))


def _planned(model: nn.Module, recipe: Recipe) -> dict[str, Planned]:
    folded = _folded(model)
    work = folded.model
    plans, _ = join_tied(work, recipe.plan((name, kind) for name, _, kind in kinds.quantizable(work)))
    check_plans(plans)
    quantized = {plan.name: plan for plan in plans if plan.scheme is not None}
    kept = {plan.name: plan.reason for plan in plans if plan.scheme is None}
    result = {}
    for size in layer_sizes(work):
        if size.name not in quantized:
            result[size.name] = Planned("float", "float", size.nbytes, kept.get(size.name, ""))
    counted: set[int] = set()
    for name, plan in quantized.items():
        result[name] = _planned_layer(work.get_submodule(name), plan, counted)
    return result


def _planned_layer(layer: nn.Module, plan: LayerPlan, counted: set[int]) -> Planned:
    scheme = plan.scheme
    assert scheme is not None
    nbytes = 0
    if id(layer.weight) not in counted:
        counted.add(id(layer.weight))
        nbytes += _matrix_bytes(layer, scheme)
    bias = getattr(layer, "bias", None)
    nbytes += 4 * bias.numel() if isinstance(bias, Tensor) else 0
    if scheme.activations is None:
        return Planned(str(scheme.weights), "float", nbytes, plan.reason)
    if scheme.dynamic:
        return Planned(
            str(scheme.weights), f"{dynamic_spec(scheme.activations, plan.kind)} dynamic", nbytes, plan.reason
        )
    nbytes += _STATIC_QUANTIZER_BYTES * (1 if scheme.activations.symmetric else 2)
    return Planned(str(scheme.weights), str(scheme.activations), nbytes, plan.reason)


def _matrix_bytes(layer: nn.Module, scheme: Scheme) -> int:
    spec, shape = scheme.weights, tuple(kinds.weight_matrix(layer).shape)
    grain = spec.granularity
    values, blocks = math.prod(grain.padded_shape(shape)), math.prod(grain.scale_shape(shape))
    return packed_bytes(values, spec.bits, blocks, not spec.symmetric, spec.scale_dtype.itemsize)


def _folded(model: nn.Module) -> FoldResult:
    """The model with its batch norms folded; a copy only where there are any."""
    if not any(True for _ in _norms(model)):
        return FoldResult(model)
    return fold_batch_norm(copy.deepcopy(model).eval())


def _norms(model: nn.Module) -> Iterator[nn.Module]:
    kinds_of_norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return (module for module in model.modules() if isinstance(module, kinds_of_norm))
