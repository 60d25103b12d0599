from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx_cases import as_ir, mlp, run

from fewbit.algorithms import rtn
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, nbits, qdq

X = {"x": np.random.default_rng(1).standard_normal((5, 32)).astype(np.float32)}


@pytest.mark.parametrize("grain", ["g16", "g32", "channel", "tensor"])
@pytest.mark.parametrize("kind", ["int4", "uint4", "int8", "int3", "int6", "int2"])
@pytest.mark.parametrize("symmetry", ["sym", "asym"])
def test_products_are_those_of_the_dequantized_weights(kind: str, grain: str, symmetry: str) -> None:
    if kind == "uint4" and symmetry == "sym":
        pytest.skip("unsigned codes are asymmetric")
    spec = QSpec.parse(f"{kind}/{grain}/{symmetry}")
    assert nbits.fits(spec)
    model, expected = as_ir(mlp()), as_ir(mlp())
    for layer, twin in zip(layers.find(model), layers.find(expected)):
        bias = None if layer.bias is None else torch.from_numpy(layer.bias.const_value.numpy().copy())
        tensor = rtn.quantize_weight(layer.matrix(), spec)
        twin.weight.const_value = ir.Tensor(twin.in_file(tensor.dequantize()).numpy(), name=twin.weight.name)
        nbits.write_layer(model.graph, layer, tensor, bias)
    qdq.drop_unused(model.graph)
    np.testing.assert_allclose(run(model, X)[0], run(expected, X)[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec", ["int4/g20/sym", "int4/g8/sym", "int4/g512/sym", "float8_e4m3/channel/sym"])
def test_what_does_not_fit(spec: str) -> None:
    try:
        parsed = QSpec.parse(spec)
    except ValueError:
        pytest.skip("no such format here")
    assert not nbits.fits(parsed)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.sampled_from([2, 4, 8]))
def test_codes_are_packed_low_bits_first(codes: list[int], bits: int) -> None:
    packed = nbits.pack(torch.tensor([codes]), bits)[0]
    each = 8 // bits
    found = [(int(packed[i // each]) >> (i % each * bits)) & ((1 << bits) - 1) for i in range(len(codes))]
    assert found == codes


@pytest.mark.parametrize(
    ("columns", "bits", "size"), [(1, 4, 16), (32, 4, 32), (64, 4, 64), (192, 4, 64), (640, 4, 128), (640, 8, 128)]
)
def test_rows_of_one_scale_are_not_filled_up_needlessly(columns: int, bits: int, size: int) -> None:
    assert nbits.block_size(QSpec.parse(f"int{bits}/channel/sym"), columns) == size
    assert nbits.block_size(QSpec.parse(f"int{bits}/g32/sym"), columns) == 32
