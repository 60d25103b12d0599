from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from integer_cases import KINDS, Mixed, Residual, network, pictures
from torch import nn

from fewbit.errors import FewbitError
from fewbit.integer.qdq import export, qdq_module
from fewbit.integer.simulate import simulate

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@functools.cache
def exported(kind: type[nn.Module]):
    return export(network(kind), [pictures()])


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_on_its_way_is_the_simulation(kind: type[nn.Module]) -> None:
    found, x = network(kind), pictures()
    module, order = qdq_module(found)
    (wanted,) = simulate(found.nodes, {found.inputs[0]: x}, found.constants, found.affine, found.outputs)
    assert float((module(x) - wanted).abs().mean()) < 0.02 * float(wanted.std())
    assert sorted(order) == sorted(found.affine)


@pytest.mark.parametrize("kind", KINDS)
def test_every_integer_tensor_is_behind_one_pair_with_its_numbers(kind: type[nn.Module]) -> None:
    found, (model, codes) = network(kind), exported(kind)
    onnx.checker.check_model(model, full_check=True)
    held = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    assert set(codes) == set(found.affine)
    for name, affine in found.affine.items():
        node = makers[codes[name]]
        assert (float(held[node.input[1]]), int(held[node.input[2]])) == (affine.scale, affine.zero_point)


def test_what_saturation_does_is_left_out() -> None:
    ops = Counter(node.op_type for node in exported(Residual)[0].graph.node)
    assert not {"Relu", "Clip", "BatchNormalization", "Pad"} & set(ops)
    assert ops["Conv"] == 4
    assert ops["Gemm"] == 1


def test_the_batch_size_stays_open() -> None:
    model, _ = exported(Mixed)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_layers_without_a_form_in_onnx_are_named() -> None:
    import fewbit
    from fewbit.integer import integer_network

    model = fewbit.quantize(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        fewbit.Recipe("W8A8", rules=(fewbit.recipe.Rule("0", weights="int8/channel/asym"),)),
        [torch.randn(4, 8)],
    )
    with pytest.raises(FewbitError, match=r"torch\.onnx\.export failed"):
        export(integer_network(model, [torch.randn(4, 8)]), [torch.randn(4, 8)])
