"""Which tensors carry codes: the one place that decides it, for ONNX graphs of any origin.

Backward through the graph, a tensor is *wanted* as codes when a node that computes on integers reads it:

- a chosen layer wants its input (a product of two activations wants both);
- a carrier (MaxPool, Reshape, Concat, …) whose output is wanted wants its input, and both share one quantizer;
- an addition or multiplication of two tensors, or a pooling, with an integer kernel and a wanted output wants its
  inputs;
- a Relu or Clip whose output is wanted is absorbed by it: the quantizer stands on its output, and the range of the
  codes does the clipping.

Nothing else is coded, so that a residual stream that only norms and additions read stays in float. Forward, products
that write only codes (:attr:`Target.coded_out`) get a quantizer on their output in any case.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fewbit.onnxgraph.constants import array_of, attribute, only_use
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.targets import Target

_ACTIVATIONS = ("Relu", "Clip")


@dataclass
class Placement:
    """Where quantizers stand.

    Attributes:
        layers: The layers that are quantized.
        coded: Tensors that carry codes, by name, in the graph's order.
        group: For each of them the first tensor of those it shares its quantizer with.
        observed: For each group the tensors whose values together are all values of the group.
        absorbed: For a node's output the activation function behind it that its quantizer may replace.
        nodes: Names of nodes that compute on integers.
    """

    layers: list[Layer]
    coded: dict[str, Any] = field(default_factory=dict)
    group: dict[str, str] = field(default_factory=dict)
    observed: dict[str, list[str]] = field(default_factory=dict)
    absorbed: dict[str, Any] = field(default_factory=dict)
    nodes: set[str] = field(default_factory=set)


def place(model: Any, layers: list[Layer], target: Target) -> Placement:
    """Decide for a whole graph.

    Args:
        model: A simplified model.
        layers: The chosen layers; others stay in float.
        target: The runtime's rules.
    """
    placement = Placement(layers)
    chosen = {id(layer.node) for layer in layers}
    wanted: set[int] = set()
    for node in reversed(list(model.graph)):
        _visit(node, id(node) in chosen, wanted, placement, target)
    _code_outputs(layers, wanted, placement, target)
    order = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    placement.coded = {value.name: value for value in order if id(value) in wanted}
    _share(model, placement, target)
    return placement


def carries(node: Any, target: Target) -> bool:
    """Whether a node gives the codes of its input on, unchanged."""
    if node.op_type not in target.carriers or node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type in ("Resize", "Upsample"):
        return bool(attribute(node, "mode", "nearest") == "nearest")
    return len(node.outputs) == 1 or node.op_type == "Split" or not any(o.uses() for o in node.outputs[1:])


def carried_inputs(node: Any) -> list[Any]:
    """The inputs of a carrier whose values it gives on."""
    return list(node.inputs) if node.op_type == "Concat" else [node.inputs[0]]


def final_output(node: Any, target: Target) -> Any:
    """The tensor that a node's quantizer stands on: behind an absorbed activation function, if there is one."""
    function = absorbed_function(node.outputs[0])
    return node.outputs[0] if function is None or node.op_type in target.carriers else function.outputs[0]


def absorbed_function(value: Any) -> Any:
    """The Relu or constant Clip that is the only reader of a value, or None."""
    reader = only_use(value)
    if reader is None or reader.op_type not in _ACTIVATIONS or reader.inputs[0] is not value:
        return None
    return reader if clip_bounds(reader) is not None else None


def clip_bounds(node: Any) -> tuple[float, float] | None:
    """The interval a Relu or Clip maps to; None when it is computed."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [float("-inf"), float("inf")]
    for index in (1, 2):
        if len(node.inputs) > index and node.inputs[index] is not None:
            constant = array_of(node.inputs[index])
            if constant is None:
                return None
            bounds[index - 1] = float(constant.reshape(-1)[0])
    return bounds[0], bounds[1]


def _visit(node: Any, chosen: bool, wanted: set[int], placement: Placement, target: Target) -> None:
    """Decide what one node wants of its inputs, its readers having been visited."""
    if chosen:
        placement.nodes.add(node.name)
        _want(node.inputs[0], wanted)
        return
    if not node.outputs or not any(id(output) in wanted for output in _outputs(node, target)):
        return
    if carries(node, target):
        for value in carried_inputs(node):
            _want(value, wanted)
    elif node.op_type in target.integer and node.domain in ("", "ai.onnx"):
        inputs = [value for value in node.inputs if value is not None]
        if target.one_side and node.op_type == "Add" and _both_computed(node):
            inputs = [value for value in inputs if value is not _float_side(node, placement)]
        if any(value.dtype is not None and value.dtype.name != "FLOAT" for value in inputs):
            return
        if node.op_type in ("Add", "Mul") and any(array_of(value) is not None for value in inputs):
            return  # 8 bits for a bias or a factor cost more than they gain
        placement.nodes.add(node.name)
        for value in inputs if node.op_type in ("Add", "Mul") else inputs[:1]:
            _want(value, wanted)


def _outputs(node: Any, target: Target) -> list[Any]:
    return [*node.outputs, final_output(node, target)]


def _want(value: Any, wanted: set[int]) -> None:
    if array_of(value) is None:
        wanted.add(id(value))


def _both_computed(node: Any) -> bool:
    return (
        len(node.inputs) == 2 and all(array_of(v) is None for v in node.inputs) and node.inputs[0] is not node.inputs[1]
    )


def _float_side(node: Any, placement: Placement) -> Any:
    """The side of an addition that a layer computes for it alone; the later one when both are so."""
    layers = {id(layer.node): index for index, layer in enumerate(placement.layers)}
    fit = [v for v in node.inputs if id(v.producer()) in layers and only_use(v) is node]
    return max(fit, key=lambda v: layers[id(v.producer())], default=None)


def _code_outputs(layers: list[Layer], wanted: set[int], placement: Placement, target: Target) -> None:
    for layer in layers:
        output = final_output(layer.node, target)
        if layer.kind in target.coded_out and id(layer.node.outputs[0]) not in wanted:
            wanted.add(id(output))


def _share(model: Any, placement: Placement, target: Target) -> None:
    """Join the tensors around carriers, note what to observe, and which activation functions may go."""
    parent = {name: name for name in placement.coded}
    covered: set[str] = set()
    for node in model.graph:
        if carries(node, target):
            outputs = [v.name for v in node.outputs if v.name in parent]
            inputs = [v.name for v in carried_inputs(node) if v is not None and v.name in parent]
            for name in [*inputs, *outputs] if inputs and outputs else []:
                parent[_root(parent, name)] = _root(parent, [*inputs, *outputs][0])
            if inputs and outputs:
                covered |= set(inputs) if node.op_type == "Concat" else set(outputs)
        else:
            _absorb(node, parent, placement)
    for name in placement.coded:
        root = _root(parent, name)
        placement.group[name] = root
        placement.observed.setdefault(root, [])
        if name not in covered:
            placement.observed[root].append(name)


def _absorb(node: Any, parent: dict[str, str], placement: Placement) -> None:
    """Note the activation function behind a node whose output carries codes while the node's own does not."""
    function = absorbed_function(node.outputs[0]) if node.outputs else None
    if function is not None and function.outputs[0].name in parent and node.outputs[0].name not in parent:
        placement.absorbed[node.outputs[0].name] = function


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        name = parent[name]
    return name
