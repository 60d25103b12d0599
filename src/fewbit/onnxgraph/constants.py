"""Small things that every step needs: constants of a graph, new constants, attributes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir


def array_of(value: Any) -> np.ndarray | None:
    """The constant behind a value, or None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    found: np.ndarray = value.const_value.numpy()
    return found


def add_constant(graph: Any, name: str, array: np.ndarray, dtype: Any = None) -> Any:
    """A new initializer under a name that nothing has yet."""
    name = fresh_name(graph, name)
    if dtype is not None:
        array = array.astype(dtype.numpy())
    tensor = ir.Tensor(np.array(array, order="C"), name=name)  # asarray would give a scalar an axis
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def bytes_since(graph: Any, before: set[str]) -> int:
    """Bytes of the constants that came to those of these names."""
    return sum(value.const_value.nbytes for name, value in graph.initializers.items() if name not in before)


def bytes_behind(node: Any) -> int:
    """Bytes of the constants that a node reads beside its first input, its quantizers' scales and zero points with
    them."""
    values = [value for value in node.inputs[1:] if value is not None]
    makers = [value.producer() for value in values]
    constants = [value for value, maker in zip(values, makers) if maker is None]
    constants += [value for maker in makers if maker is not None for value in maker.inputs]
    return sum(value.const_value.nbytes for value in constants if value is not None and value.const_value is not None)


def fresh_name(graph: Any, name: str) -> str:
    """The name, or the name with a number when it is taken."""
    taken = graph.meta.get("fewbit.names")
    if taken is None:
        taken = {value.name for value in [*graph.inputs, *graph.initializers.values()]}
        taken |= {value.name for node in graph.all_nodes() for value in node.outputs}
        taken |= {value.name for inner in graph.subgraphs() for value in [*inner.inputs, *inner.initializers.values()]}
        graph.meta["fewbit.names"] = taken
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    taken.add(found)
    return found


def attribute(node: Any, name: str, default: Any) -> Any:
    """The value of an attribute, or a default."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def only_use(value: Any) -> Any:
    """The only node that reads a value, when the value is no output of the graph and the node is beside the one that
    makes it, not in a subgraph; else None."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    reader, maker = uses[0].node, value.producer()
    return reader if maker is None or reader.graph is maker.graph else None
