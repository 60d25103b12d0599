"""A quantized graph walked through once, a stretch at a time, over all samples.

What a stretch starts from are codes that an earlier one left, a byte each, or float tensors that were named, so that
looking at every layer in turn costs little more than one pass through the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.onnxgraph import observe

See = Callable[[np.ndarray], None]


class Walk:
    """A graph, and the codes that are at hand for each piece of the data.

    Args:
        model: Quantized. Constants in front of a tensor that was looked at must not change afterwards.
        names: All tensors that will be looked at, in the graph's order.
        batches: The data.
        floats: Tensors that may be held although they are no codes. None of them may hang on a constant that changes
            when a tensor behind it has been looked at.
    """

    def __init__(
        self, model: Any, names: Sequence[str], batches: list[Any], floats: Collection[str] = frozenset()
    ) -> None:
        self.model, self.batches, self.ahead, self.floats = model, batches, list(names), floats
        self.makers = {value.name: node for node in model.graph for value in node.outputs}
        self.order = {id(node): index for index, node in enumerate(model.graph)}
        self.held: dict[str, list[np.ndarray]] = {}
        self.whole = any(_holds_graph(node) for node in model.graph)

    def look(self, name: str, see: See) -> None:
        """Show the next tensor, piece after piece.

        Args:
            name: The first of those that were not looked at yet.
            see: Gets each piece; the array is written to again afterwards.
        """
        self.ahead.remove(name)
        if self.whole:  # a node with a graph of its own inside reads values from outside
            observe.stream(self.model, [name], self.batches, lambda tensors, _: see(tensors[name]))
            return
        nodes, reached = self._behind(name)
        own = self._own(name)
        found = [node.outputs[0].name for node in nodes if node.op_type == "QuantizeLinear"]
        found += [value.name for node in nodes for value in node.outputs if value.name in self.floats]
        fresh: dict[str, list[np.ndarray]] = {code: [] for code in found if code not in own}
        if not self.held:
            fresh |= {value.name: [] for value in self.model.graph.inputs}

        def keep(tensors: dict[str, np.ndarray], _samples: int) -> None:
            for code, pieces in fresh.items():
                pieces.append(tensors[code].copy())
            see(tensors[name])

        model = segment(self.model, nodes, [name, *fresh], self.held)
        observe.stream(model, [name, *fresh], self._data(reached), keep)
        self.held |= fresh
        self._forget()

    def _own(self, name: str) -> set[str]:
        """A tensor, and what it is decoded from: all that may change once it was looked at."""
        own = {name}
        for kind in ("DequantizeLinear", "QuantizeLinear"):
            maker = self.makers.get(name)
            if maker is not None and maker.op_type == kind:
                name = maker.inputs[0].name
                own.add(name)
        return own

    def _data(self, reached: list[str]) -> list[Any]:
        if not self.held:
            return self.batches
        count = len(next(iter(self.held.values())))
        return [{name: self.held[name][index] for name in reached} for index in range(count)]

    def _behind(self, name: str) -> tuple[list[Any], list[str]]:
        """The nodes that make a tensor from what is held, in order, and what of that they read."""
        nodes: dict[int, Any] = {}
        reached: dict[str, None] = {}
        waiting = [name]
        while waiting:
            current = waiting.pop()
            node = self.makers.get(current)
            if current in self.held:
                reached[current] = None
            elif node is not None and id(node) not in nodes:
                nodes[id(node)] = node
                waiting += [value.name for value in node.inputs if value is not None]
        return sorted(nodes.values(), key=lambda node: self.order[id(node)]), list(reached)

    def _forget(self) -> None:
        """Drop what no tensor ahead starts from."""
        needed = {start for name in self.ahead for start in self._behind(name)[1]}
        self.held = {name: pieces for name, pieces in self.held.items() if name in needed}


def segment(model: Any, nodes: list[Any], outputs: list[str], held: dict[str, list[np.ndarray]]) -> Any:
    """A model of some nodes, with constants of their own.

    Args:
        model: Where they are from; not changed.
        nodes: In order.
        outputs: Names of values they make, or of the model's inputs.
        held: Values that come from outside, of any size; the model's inputs keep theirs.
    """
    values: dict[str, Any] = {}
    inputs: list[Any] = []
    if not held:
        for value in model.graph.inputs:
            values[value.name] = ir.Value(name=value.name, type=value.type, shape=value.shape)
            inputs.append(values[value.name])
    constants: dict[str, Any] = {}

    def own(value: Any) -> Any:
        if value is None:
            return None
        if value.name not in values:
            made = ir.Value(name=value.name, type=value.type, shape=value.shape, const_value=value.const_value)
            if value.name in held:
                made.shape = None
                made.type = ir.TensorType(ir.DataType.from_numpy(held[value.name][0].dtype))
                inputs.append(made)
            elif value.const_value is not None and value.producer() is None:
                constants[value.name] = made
            values[value.name] = made
        return values[value.name]

    made_nodes = [
        ir.Node(
            node.domain, node.op_type, [own(value) for value in node.inputs], list(node.attributes.values()),
            outputs=[own(value) for value in node.outputs], name=node.name,
        )
        for node in nodes
    ]  # fmt: skip
    graph = ir.Graph(
        inputs, [values[name] for name in outputs if name in values], nodes=made_nodes,
        initializers=list(constants.values()), opset_imports=dict(model.graph.opset_imports), name="segment",
    )  # fmt: skip
    return ir.Model(graph, ir_version=model.ir_version)


def _holds_graph(node: Any) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())
