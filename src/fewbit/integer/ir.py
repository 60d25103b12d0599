"""The integer graph: values with a scale and a zero point, and the operations between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewbit.kernels.products import Geometry

#: Layers with weights; they alone decide that a tensor is worth being an integer.
LAYERS = ("conv", "linear")
#: Operations that can work on codes when what they read are codes.
BETWEEN = ("add", "mul", "concat", "max_pool", "avg_pool", "resize", "view", "pad", "table")
#: Operations whose output has the scale of their input.
SHARING = ("max_pool", "view", "pad", "resize")


@dataclass(frozen=True)
class Ref:
    """A value, in the arguments of a torch function."""

    name: str


@dataclass(frozen=True)
class Affine:
    """``x = scale · (q − zero_point)`` for codes ``qmin ≤ q ≤ qmax`` of a whole tensor; scale is a float32 number."""

    scale: float
    zero_point: int
    qmin: int
    qmax: int

    @property
    def dtype(self) -> torch.dtype:
        """uint8 or int8."""
        return torch.int8 if self.qmin < 0 else torch.uint8

    @property
    def bits(self) -> int:
        """Bits of a code; the lowest one may be left out."""
        return (self.qmax - self.qmin).bit_length()

    @property
    def fills_its_dtype(self) -> bool:
        """Whether a cast that saturates is all the clipping that there is: not with fewer bits, nor without −128."""
        info = torch.iinfo(self.dtype)
        return (self.qmin, self.qmax) == (info.min, info.max)

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.scale * (self.qmin - self.zero_point), self.scale * (self.qmax - self.zero_point)

    def code(self, value: float) -> int:
        """The code nearest to a value, half to even; infinite values give the ends."""
        if value in (float("inf"), float("-inf")):
            return self.qmax if value > 0 else self.qmin
        return min(max(round(value / self.scale) + self.zero_point, self.qmin), self.qmax)

    def quantize(self, x: Tensor) -> Tensor:
        """Codes of float values, any shape."""
        q = torch.round(x / self.scale).add_(self.zero_point).clamp_(self.qmin, self.qmax)
        return q.to(self.dtype)

    def dequantize(self, codes: Tensor) -> Tensor:
        """float32 values of codes."""
        return (codes.to(torch.float32) - self.zero_point) * self.scale


@dataclass(frozen=True)
class Weight:
    """The weight and bias of a layer.

    Attributes:
        codes: int8 ``[out, in/groups, *kernel]`` or ``[out, in]``.
        scale: float32 ``[out]``.
        bias: float32 ``[out]``, zeros where the layer has none.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor


@dataclass
class Node:
    """One operation; its output is the value of the same name.

    Attributes:
        op: One of :data:`LAYERS` or :data:`BETWEEN`, ``float`` (any torch function on float values) or ``shape``
            (a function of sizes).
        name: The value it makes.
        inputs: The values it reads, in order.
        target: The torch function, for ``view``, ``pad``, ``max_pool``, ``float`` and ``shape``.
        args: Its arguments, values as :class:`Ref`.
        kwargs: Its named arguments.
        layer: The layer's name in the model, for ``conv`` and ``linear``.
        weight: Its weight.
        geometry: How a convolution walks.
        clip: The activation absorbed into the output: smallest and largest value.
        detail: What else the operation needs: ``axis``, ``kernel``, ``program``, …
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    target: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    layer: str = ""
    weight: Weight | None = None
    geometry: Geometry | None = None
    clip: tuple[float, float] | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    integer: bool = False

    def call(self, values: Mapping[str, Any]) -> Any:
        """Run ``target`` on the values at hand."""
        assert self.target is not None

        def real(leaf: Any) -> Any:
            return values[leaf.name] if isinstance(leaf, Ref) else leaf

        args, kwargs = torch.utils._pytree.tree_map(real, (self.args, self.kwargs), is_leaf=_is_ref)
        return self.target(*args, **kwargs)


def _is_ref(value: Any) -> bool:
    return isinstance(value, Ref)


@dataclass
class Network:
    """A network in integers.

    Attributes:
        inputs: Names of the network's inputs, in order.
        outputs: Names of its outputs, in order.
        nodes: In an order in which every value is made before it is read.
        affine: The quantizer of every value that is an integer.
        constants: Tensors that float operations read.
        output_tree: How the outputs lie in what the model returns.
        notes: Sentences on what stayed in float.
    """

    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]
    affine: dict[str, Affine]
    constants: dict[str, Tensor]
    output_tree: Any = None
    notes: list[str] = field(default_factory=list)

    def layers(self) -> Iterator[Node]:
        """The integer layers with weights, in order."""
        return (node for node in self.nodes if node.integer and node.op in LAYERS)

    def node(self, name: str) -> Node:
        """The node that makes a value."""
        return next(node for node in self.nodes if node.name == name)

    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                found.setdefault(name, []).append(node)
        return found
