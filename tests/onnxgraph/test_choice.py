from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx_cases import as_ir, branches, convnet, pictures

from fewbit.calibrate import best
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, observe, placement, ranges, targets
from fewbit.onnxgraph.choice import choose
from fewbit.onnxgraph.codes import Codes
from fewbit.onnxgraph.simplify import simplify

SPEC = QSpec.parse("uint8/tensor/asym")


def chosen(proto: onnx.ModelProto, batches: list[np.ndarray]) -> tuple[Any, Any, dict[str, Any], dict[str, str]]:
    model = as_ir(proto)
    simplify(model)
    places = placement.place(model, layers.find(model), targets.get("onnxruntime"))
    statistics = ranges.new_statistics(places, "best", {})
    observe.observe(model, statistics, batches)
    groups = ranges.merged(places, statistics)
    codes, names = choose(model, places, groups, batches, SPEC)
    assert set(codes) == set(names) == set(groups)
    for group, name in names.items():
        assert codes[group] == Codes.of(best.candidates(groups[group], SPEC)[name], SPEC, group)
    return model, places, groups, names


def test_the_least_error_of_the_layer_behind_wins() -> None:
    x = pictures(8)
    x[0, 0, 0, 0] = 30.0  # a bad pixel
    model, _, groups, names = chosen(convnet(), [x])
    layer = layers.find(model)[0]
    assert layer.node.inputs[0].name == "x"
    weight = torch.from_numpy(np.array(layer.weight.const_value.numpy()))
    stride = list(layer.node.attributes["strides"].value) if "strides" in layer.node.attributes else [1, 1]
    pads = layer.node.attributes["pads"].value[:2] if "pads" in layer.node.attributes else [0, 0]

    def output(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(values, weight, None, stride, list(pads), groups=layer.groups)

    exact, errors = output(torch.from_numpy(x)), {}
    for name, bounds in best.candidates(groups["x"], SPEC).items():
        codes = Codes.of(bounds, SPEC, "x")
        decoded = (codes.codes(torch.from_numpy(x)).float() - codes.zero_point) * codes.scale
        errors[name] = float((output(decoded) - exact).square().sum())
    assert errors[names["x"]] <= min(errors.values()) * 1.05  # of every other position


def test_tensors_that_no_layer_reads_have_one_too() -> None:
    model, places, _, names = chosen(branches(), [pictures(4, size=8)])
    read = {layer.node.inputs[0].name for layer in layers.find(model)}
    assert any(not read & {n for n, g in places.group.items() if g == group} for group in names)
