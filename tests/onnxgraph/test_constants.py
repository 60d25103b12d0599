from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_cases import as_ir, branching, convnet

from fewbit.onnxgraph.constants import add_constant, array_of, attribute, fresh_name, only_use


def test_constants_are_told_from_tensors() -> None:
    graph = as_ir(convnet()).graph
    conv = graph[0]
    assert array_of(conv.inputs[0]) is None
    assert array_of(conv.inputs[1]).shape == (8, 3, 3, 3)  # type: ignore[union-attr]
    assert array_of(None) is None


def test_new_constants_get_names_of_their_own_and_the_type_asked_for() -> None:
    graph = as_ir(convnet()).graph
    first = add_constant(graph, "stem.w", np.zeros(3), ir.DataType.INT8)
    assert first.name == "stem.w_2"
    assert first.const_value.dtype == ir.DataType.INT8
    assert fresh_name(graph, "stem.w") == "stem.w_3"
    assert add_constant(graph, "half", np.array([-8, 7]), ir.DataType.INT4).const_value.nbytes == 1


def test_attributes_and_only_readers() -> None:
    graph = as_ir(convnet()).graph
    assert attribute(graph[0], "group", 5) == 1
    assert attribute(graph[0], "none", 5) == 5
    assert only_use(graph[0].outputs[0]) is graph[1]
    stem = next(node for node in graph if node.name == "stem.act_node")
    assert only_use(stem.outputs[0]) is None  # read twice


def test_a_reader_in_a_subgraph_is_no_only_use_and_names_there_are_taken() -> None:
    proto = branching()
    other = next(a.g for node in proto.graph.node for a in node.attribute if a.name == "else_branch")
    other.node[0].input[0] = "inner.w"  # so that one branch alone reads "a"
    graph = as_ir(proto).graph
    value = next(node.outputs[0] for node in graph if node.name == "a_node")
    assert [use.node.graph is graph for use in value.uses()] == [False]
    assert only_use(value) is None
    assert fresh_name(graph, "t") == "t_2"
    assert fresh_name(graph, "new") == "new"
