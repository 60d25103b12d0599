"""The mean output of every layer of the quantized network becomes that of the float network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx_cases import as_ir, convnet, pictures, run

from fewbit.algorithms import rtn
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import drift, layers, observe, placement, ranges, static, targets
from fewbit.onnxgraph.simplify import simplify
from fewbit.onnxpipeline.static_job import layer_bias

BATCHES = [pictures(16, seed=1), pictures(16, seed=2)]


def networks(target_name: str) -> tuple[Any, Any, list[Any], dict[str, torch.Tensor]]:
    """A float network, the same with coarse weights, its layers and its biases."""
    model = as_ir(convnet())
    simplify(model)
    target, found = targets.get(target_name), layers.find(model)
    places = placement.place(model, found, target)
    statistics = ranges.new_statistics(places, "minmax", {})
    observe.observe(model, statistics, BATCHES)
    codes = ranges.solve(ranges.merged(places, statistics), "minmax", {}, QSpec.parse(target.activations))
    weights = {la.name: rtn.quantize_weight(la.matrix(), QSpec.parse("int3/channel/sym")) for la in found}
    biases = {la.name: bias for la in found if (bias := layer_bias(la)) is not None}
    written = model.clone()
    there = placement.place(written, layers.find(written), target)
    static.write_static(written, there, target, codes, weights, biases)
    return model, written, found, biases


def output_means(model: Any, name: str) -> np.ndarray:
    names = {value.name for node in model.graph for value in node.outputs}
    there = f"{name}_dequantized" if f"{name}_dequantized" in names else name
    with observe.exposed(model, [there]):
        found = np.concatenate([run(model, {"x": batch})[0] for batch in BATCHES])
    return np.asarray(found.mean(tuple(axis for axis in range(found.ndim) if axis != 1), dtype=np.float64))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_means_of_outputs_come_back(target: str) -> None:
    model, written, found, biases = networks(target)
    names = [drift._output(layer).name for layer in found if layer.name in biases]
    before = [np.abs(output_means(model, n) - output_means(written, n)).mean() for n in names]
    told: list[tuple[str, int, int]] = []
    made = drift.corrected(model, written, found, biases, BATCHES, lambda *step: told.append(step))
    after = [np.abs(output_means(model, n) - output_means(written, n)).mean() for n in names]
    assert set(made) == set(biases)
    assert told[-1] == ("correct biases", len(names), len(names))
    assert sum(after) < 0.4 * sum(before)
    for value in written.graph.outputs:
        assert value.name == "logits"


def test_a_channel_that_is_always_flat_stays() -> None:
    model, written, found, biases = networks("onnxruntime")
    first = found[0]
    dead = biases[first.name].clone()
    dead[0] = -1e3
    array = np.array(first.bias.const_value.numpy())
    array[0] = -1e3
    import onnx_ir as ir

    first.bias.const_value = ir.Tensor(array, name=first.bias.name)
    made = drift.corrected(model, written, found, {**biases, first.name: dead}, BATCHES)
    assert float(made[first.name][0]) == -1e3


def test_differences_among_few_samples_are_believed_as_far_as_they_agree() -> None:
    rng = np.random.default_rng(0)
    noise, sign = rng.standard_normal((50, 400)), rng.choice([-1.0, 1.0], 400)
    truth = 0.1 * sign
    found = drift._sure(truth + noise)
    assert np.square(found - truth).mean() < np.square((truth + noise).mean(0) - truth).mean()
    np.testing.assert_allclose(drift._sure(np.tile(truth, (50, 1))), truth)
    np.testing.assert_array_equal(drift._sure(truth[None]), truth)
    assert np.all(drift._sure(np.zeros((3, 2))) == 0)
