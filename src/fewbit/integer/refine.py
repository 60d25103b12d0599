"""Rounding a network's weights layer after layer, each for the input that the layers before it really leave.

The float network and the quantized one run side by side over the calibration data, one operation at a time. Each
layer's weight is first moved to what gives the float output on the quantized input (:mod:`fewbit.integer.moments`),
then rounded by an algorithm against that input's Gram matrix; its bias takes up what is left of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fewbit.algorithms import _batched, rtn
from fewbit.calibrate.collect import Progress
from fewbit.calibrate.gram import Gram, Statistics
from fewbit.integer.blocks import BATCH, Block, BlockForward, blocks, is_batch, part_of
from fewbit.integer.ir import Affine, Node, Weight
from fewbit.integer.moments import Moments, moments, transferred
from fewbit.integer.place import Placement
from fewbit.integer.simulate import compute
from fewbit.numbers.granularity import PerChannel
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec


@dataclass(frozen=True)
class FloatLayer:
    """A layer before it was quantized: its weight as a matrix ``[out, K]``, its bias ``[out]``, the spec it gets."""

    weight: Tensor
    bias: Tensor
    spec: QSpec


@dataclass(frozen=True)
class Solved:
    """A layer's new codes and bias, float32 ``[out]``."""

    codes: QTensor
    bias: Tensor


@dataclass(frozen=True)
class Options:
    """How much data is looked at, and how far weights may move to make up for the layers before.

    Attributes:
        samples: Pictures, at most.
        rows: Positions of all pictures together.
        damping: Draws the moved weight towards the float one, in units of the mean of the Gram matrix's diagonal.
    """

    samples: int = 96
    rows: int = 16384
    damping: float = 0.01


class Refinement:
    """Two networks side by side.

    Args:
        placement: Of the quantized network; its nodes get the new weights.
        affine: The quantizer of every integer tensor.
        floats: The float layers by name.
        algorithm: Rounds a weight, a module of :mod:`fewbit.algorithms`.
        options: See :class:`Options`.
    """

    def __init__(
        self,
        placement: Placement,
        affine: Mapping[str, Affine],
        floats: Mapping[str, FloatLayer],
        algorithm: ModuleType,
        options: Options | None = None,
    ) -> None:
        self.found, self.affine, self.floats = placement.found, affine, floats
        self.algorithm, self.options = algorithm, options or Options()
        self.exact: dict[str, list[Any]] = {}
        self.coded: dict[str, list[Any]] = {}
        self.count = 0
        self.solved: dict[str, Solved] = {}
        learns = hasattr(algorithm, "reconstruct")
        self.blocks = {block.last: block for block in blocks(self.found)} if learns else {}
        self.starts = {block.first: block for block in self.blocks.values()}
        self.learned: list[tuple[list[str], float, float]] = []  # the layers of each block, its loss before and after
        self.sizes: dict[str, Any] = {}
        self.waiting: list[Any] = []  # what the block that is under way read

    @torch.no_grad()
    def run(self, batches: Sequence[Sequence[Tensor]], progress: Progress | None = None) -> dict[str, Solved]:
        """Round every layer.

        Args:
            batches: The network's inputs, one sequence a batch.
            progress: Called with (stage, steps done, steps in all).
        """
        found = self.found
        self.count = len(batches)
        for position, name in enumerate(found.inputs):
            self._keep(name, [x[position] for x in batches], [x[position] for x in batches])
        last = {name: index for index, node in enumerate(found.nodes) for name in node.inputs}
        for index, node in enumerate(found.nodes):
            if index in self.starts:
                self.waiting = self.coded[self.starts[index].source]
            if node.layer in self.floats:
                self.solved[node.layer] = self._layer(node)
            else:
                self._keep(node.name, self._outputs(node, self._exact), self._outputs(node, self._coded))
                if node.op == "shape":
                    self.sizes[node.name] = BATCH if is_batch(node) else self.exact[node.name][0]
            if index in self.blocks:
                self._block(self.blocks[index])
            for name in dict.fromkeys(node.inputs):
                if last[name] == index:
                    self.exact.pop(name, None)
                    self.coded.pop(name, None)
            if progress is not None:
                progress("round weights", index + 1, len(found.nodes))
        return self.solved

    def _keep(self, name: str, exact: list[Any], coded: list[Any]) -> None:
        """Remember a value of both networks, the quantized one's as codes where it is an integer."""
        affine = self.affine.get(name)
        self.exact[name] = exact
        self.coded[name] = coded if affine is None else [affine.quantize(value) for value in coded]

    def _exact(self, name: str, batch: int) -> Any:
        return self.found.constants[name] if name in self.found.constants else self.exact[name][batch]

    def _coded(self, name: str, batch: int) -> Any:
        if name in self.found.constants:
            return self.found.constants[name]
        affine, value = self.affine.get(name), self.coded[name][batch]
        return value if affine is None else affine.dequantize(value)

    def _outputs(self, node: Node, read: Callable[[str, int], Any], clip: bool = True) -> list[Any]:
        return [compute(node, {n: read(n, batch) for n in node.inputs}, clip) for batch in range(self.count)]

    def _layer(self, node: Node) -> Solved:
        """Round one layer's weight, correct its bias, and let both networks go on behind it."""
        layer, source = self.floats[node.layer], node.inputs[0]
        inside = [self._coded(source, batch) for batch in range(self.count)]
        seen = moments(node, self.exact[source], inside, self.options.rows)
        codes = self._round(node, layer, seen)
        assert node.weight is not None
        shape = node.weight.codes.shape
        floating = with_weight(node, layer.weight.reshape(shape), layer.bias)
        rounded = with_weight(node, codes.dequantize().reshape(shape), layer.bias)
        exact, coded = self._outputs(floating, self._exact, False), self._outputs(rounded, self._coded, False)
        axis = 1 if node.op == "conv" else -1
        shift = _mean(exact, axis) - _mean(coded, axis)
        spread = [1] * coded[0].dim()
        spread[axis] = -1
        coded = [value.add_(shift.reshape(spread)) for value in coded]
        if node.clip is not None:
            exact, coded = ([value.clamp_(*node.clip) for value in values] for values in (exact, coded))
        self._keep(node.name, exact, coded)
        return Solved(codes, layer.bias + shift)

    def _block(self, block: Block) -> None:
        """Learn the layers of a block together, and let the quantized network go on behind it."""
        nodes = self.found.nodes[block.first : block.last + 1]
        names = [node.layer for node in nodes if node.layer in self.solved]
        if not names:
            return
        forward = BlockForward(nodes, block, self.affine, {**self.found.constants, **self.sizes})
        weights = {name: self.floats[name].weight for name in names}
        start = {name: (self.solved[name].codes, self.solved[name].bias) for name in names}
        part = part_of(forward, weights, start, self.waiting, self.exact[block.result])
        learned = self.algorithm.reconstruct(part)
        for name in names:
            self.solved[name] = Solved(learned.weights[name], learned.free[f"{name}/bias"])
        values = {name: self.solved[name].codes.dequantize() for name in names}
        values |= {f"{name}/bias": self.solved[name].bias for name in names}
        outputs = [forward(values, codes) for codes in self.waiting]
        self._keep(block.result, self.exact[block.result], outputs)
        self.learned.append((names, learned.before, learned.after))

    def _round(self, node: Node, layer: FloatLayer, seen: Moments) -> QTensor:
        groups = len(seen.gram)
        weight = layer.weight.reshape(groups, -1, layer.weight.shape[1])
        wanted = transferred(weight, seen, self.options.damping)
        if groups > 1 and layer.spec.symmetric and layer.spec.granularity == PerChannel(0):
            return _by_groups(wanted, seen, layer.spec, self.options.damping)
        if groups > 1:
            return rtn.quantize_weight(layer.weight, layer.spec, name=f"the weight of {node.layer}")
        gram = Gram.from_state(
            {
                "products": seen.gram[0].double() * seen.count,
                "abs": torch.zeros(weight.shape[-1], dtype=torch.float64),
                "sums": torch.zeros(weight.shape[-1], dtype=torch.float64),
                "count": torch.tensor(seen.count),
            },
            node.layer,
        )
        options = self.algorithm.Options()
        result: QTensor = self.algorithm.quantize_weight(
            wanted[0].contiguous(), layer.spec, options, f"the weight of {node.layer}", Statistics(gram)
        )
        return result


def _by_groups(wanted: Tensor, seen: Moments, spec: QSpec, damping: float) -> QTensor:
    """A grouped convolution: many small matrices in step."""
    ridge = damping * seen.gram.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None] * torch.eye(wanted.shape[-1])
    values, scale = _batched.solve_groups(wanted, seen.gram + ridge, spec)
    codes = values.reshape(-1, wanted.shape[-1]).to(spec.format.code_dtype)
    return QTensor(codes, scale.reshape(-1), None, spec, tuple(codes.shape))


def with_weight(node: Node, weight: Tensor, bias: Tensor) -> Node:
    """The same layer with a float weight."""
    assert node.weight is not None
    own = Weight(node.weight.codes, node.weight.scale, bias)
    return replace(node, weight=own, detail={**node.detail, "float weight": weight})


def _mean(values: list[Tensor], axis: int) -> Tensor:
    """The mean of each channel over all batches, float32."""
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for value in values:
        channels = value.movedim(axis, 0).flatten(1)
        total = total + channels.sum(1, dtype=torch.float64)
        count += channels.shape[1]
    return (total / count).to(torch.float32)
