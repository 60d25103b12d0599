from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_cases import Maker, as_ir, convnet, linear_stream, pictures, run

from fewbit.onnxgraph import layers
from fewbit.onnxgraph.equalize import equalize, factors, streams
from fewbit.onnxgraph.observe import exposed
from fewbit.onnxgraph.simplify import simplify


def test_a_stream_is_found_whole() -> None:
    model = as_ir(linear_stream())
    (found,) = streams(model, layers.find(model))
    assert found.tensors == ("a", "b", "sum")
    assert [layer.name for layer in found.writers] == ["a_node", "b_node"]
    assert [layer.name for layer in found.readers] == ["inner_node", "out_node"]


def test_results_stay_and_channels_are_even() -> None:
    proto = linear_stream()
    for tensor in proto.graph.initializer:
        if tensor.name in ("a.w", "b.w"):  # one loud channel
            array = np.frombuffer(tensor.raw_data, np.float32).reshape(4, -1).copy()
            array[0] *= 50
            tensor.raw_data = array.tobytes()
    model = as_ir(proto)
    feeds = {"x": pictures(size=8)}
    before = run(model, feeds)[0]
    assert equalize(model, layers.find(model), [feeds]) == 1
    np.testing.assert_allclose(run(model, feeds)[0], before, rtol=1e-3, atol=1e-3)
    with exposed(model, ["a", "b", "sum"]):
        largest = np.max([np.abs(a).max(axis=(0, 2, 3)) for a in run(model, feeds)], axis=0)
    assert largest.max() / largest.min() < 1.1


def test_streams_with_a_function_or_an_output_inside_are_left_alone() -> None:
    model = as_ir(convnet())
    simplify(model)
    assert streams(model, layers.find(model)) == []
    m = Maker()
    m.conv("x", "y", 4, 3)
    model = as_ir(m.model({"x": ["n", 3, 8, 8]}, ["y"]))
    assert equalize(model, layers.find(model), []) == 0


@given(hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(0, 1e6, width=32)))
def test_factors_are_shares_of_the_largest(largest: np.ndarray) -> None:
    factor = factors(largest)
    assert (factor <= 1).all()
    assert (factor >= 2.0**-10).all()
    if largest.max() > 0:
        assert factor[largest.argmax()] == 1
