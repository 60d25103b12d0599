"""The mean output of every layer of the quantized network becomes that of the float network."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_cases import convnet, pictures, run
from quantized_cases import quantize

from fewbit.onnxgraph import drift, observe

BATCHES = [pictures(16, seed=1), pictures(16, seed=2)]


def output_means(model: Any, name: str) -> np.ndarray:
    names = {value.name for node in model.graph for value in node.outputs}
    there = f"{name}_dequantized" if f"{name}_dequantized" in names else name
    with observe.exposed(model, [there]):
        found = np.concatenate([run(model, {"x": batch})[0] for batch in BATCHES])
    return np.asarray(found.mean(tuple(axis for axis in range(found.ndim) if axis != 1), dtype=np.float64))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_means_of_outputs_come_back(target: str) -> None:
    pair = quantize(convnet(), BATCHES, "int3/channel/sym", target)
    model, written, found, biases = pair.model, pair.quantized, pair.layers, pair.biases
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
    pair = quantize(convnet(), BATCHES, "int3/channel/sym")
    biases, first = pair.biases, pair.layers[0]
    dead = biases[first.name].clone()
    dead[0] = -1e3
    array = np.array(first.bias.const_value.numpy())
    array[0] = -1e3
    first.bias.const_value = ir.Tensor(array, name=first.bias.name)
    made = drift.corrected(pair.model, pair.quantized, pair.layers, {**biases, first.name: dead}, BATCHES)
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


def test_float_tensors_are_held_for_no_more_samples_than_fit() -> None:
    batches = [pictures(4), {"x": pictures(4), "t": np.array(1)}, [pictures(4)]]
    assert [len(drift._first(batches, samples)) for samples in (0, 4, 5, 9, 100)] == [1, 1, 1, 2, 3]
