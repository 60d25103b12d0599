"""Placement for each target, on graphs small enough to know the answer."""

from __future__ import annotations

from typing import Any

import pytest
from onnx_cases import Maker, as_ir, branches, convnet, mlp

from fewbit.errors import FewbitError
from fewbit.onnxgraph import layers, targets
from fewbit.onnxgraph.placement import Placement, place
from fewbit.onnxgraph.simplify import simplify


def placed(proto: Any, target: str, skip: tuple[str, ...] = ()) -> Placement:
    model = as_ir(proto)
    simplify(model)
    chosen = [layer for layer in layers.find(model) if layer.name not in skip]
    return place(model, chosen, targets.get(target))


def test_a_network_is_coded_from_its_input_to_its_last_layer() -> None:
    found = placed(convnet(), "onnxruntime")
    assert list(found.coded) == [
        "x",
        "stem.act",
        "expand.act",
        "depth.act",
        "project",
        "sum",
        "last.act",
        "pool",
        "flat",
    ]
    assert set(found.absorbed) == {"stem.bn", "expand", "depth", "last"}
    assert found.group["flat"] == "pool"
    assert found.observed["pool"] == ["pool"]


def test_tensorrt_leaves_one_side_of_an_addition_in_float() -> None:
    coded = placed(convnet(), "tensorrt").coded
    assert "project" not in coded
    assert {"stem.act", "sum"} <= set(coded)


def test_a_skipped_layer_gets_no_codes() -> None:
    coded = placed(convnet(), "onnxruntime", skip=("depth_node",)).coded
    assert "depth.act" in coded  # the next layer reads it
    assert "expand.act" in coded  # ONNX Runtime's convolution gives codes only
    assert "expand.act" not in placed(convnet(), "openvino", skip=("depth_node",)).coded


def test_a_stream_between_additions_and_functions_stays_in_float() -> None:
    m = Maker()
    y = m.node("MatMul", [m.node("Tanh", ["x"], "norm1"), m.weight("w1", 8, 8)], "y1")
    s = m.node("Add", ["x", y], "stream1")
    y = m.node("MatMul", [m.node("Tanh", [s], "norm2"), m.weight("w2", 8, 8)], "y2")
    m.node("Add", [s, y], "stream2")
    found = placed(m.model({"x": ["n", 8]}, ["stream2"]), "onnxruntime")
    assert list(found.coded) == ["norm1", "norm2"]


def test_concatenated_tensors_share_a_quantizer_and_the_sum_of_them_is_observed() -> None:
    found = placed(branches(), "onnxruntime")
    assert found.group["pooled"] == found.group["side"] == found.group["joined"] == found.group["stem.act"]
    assert set(found.observed[found.group["joined"]]) == {"stem.act", "joined"}
    assert "mixed" in found.coded  # what HardSwish reads: the convolution must give codes
    assert "mixed" not in placed(branches(), "openvino").coded


def test_outputs_of_products_stay_in_float() -> None:
    assert list(placed(mlp(), "onnxruntime").coded) == ["x", "act"]


def test_targets_have_names() -> None:
    assert targets.names() == ["onnxruntime", "openvino", "tensorrt"]
    with pytest.raises(FewbitError, match="there are onnxruntime"):
        targets.get("coreml")
