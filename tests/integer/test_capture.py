from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from integer_cases import KINDS, Residual, pictures, quantized, seeded
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.integer.capture import capture
from fewbit.integer.ir import LAYERS
from fewbit.nn import quantized_layers


@pytest.mark.parametrize("kind", KINDS)
def test_layers_have_the_codes_scales_biases_and_quantizers_of_the_model(kind: type[nn.Module]) -> None:
    model = quantized(kind)
    found = capture(model, (pictures(),))
    layers = {node.layer: node for node in found.nodes if node.op in LAYERS}
    assert set(layers) == set(quantized_layers(model))
    for name, module in quantized_layers(model).items():
        node, matrix = layers[name], module.weight_qtensor()  # type: ignore[operator]
        assert node.weight is not None
        assert torch.equal(node.weight.codes.flatten(1), matrix.codes)
        assert torch.equal(node.weight.scale, matrix.scale)
        assert torch.equal(node.weight.bias, module.bias)  # type: ignore[arg-type]
        wanted = found.wanted[node.inputs[0]][name]
        quantizer = module.weight.input_quantizer  # type: ignore[union-attr]
        assert (wanted.scale, wanted.zero_point) == (float(quantizer.scale), int(quantizer.zero_point))


def test_any_batch_size_is_captured() -> None:
    found = capture(quantized(Residual), (pictures(3),))
    assert all(not any(leaf == 3 for leaf in node.args if isinstance(leaf, int)) for node in found.nodes)


def test_layers_with_groups_or_zero_points_of_weights_keep_their_own_operator() -> None:
    model = fewbit.quantize(
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)),
        fewbit.Recipe("W8A8", rules=(fewbit.recipe.Rule("0", weights="int8/channel/asym"),)),
        [torch.randn(4, 8)],
    )
    found = capture(model, (torch.randn(4, 8),))
    assert [node.op for node in found.nodes] == ["float", "float", "table", "linear"]


def test_activations_in_place_are_read_as_functions() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(inplace=True), nn.Conv2d(4, 2, 1))
    made = fewbit.quantize(seeded(model), "W8A8", [pictures()])
    assert [node.op for node in capture(made, (pictures(),)).nodes] == ["conv", "table", "conv"]


def test_named_arguments_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": F.relu(self.a(x)) + self.b(y)}

    made = fewbit.quantize(seeded(Two()), "W8A8", [(pictures(), pictures())])
    found = capture(made, (), {"x": pictures(), "y": pictures()})
    assert found.inputs == ["x", "y"]
    assert len(found.outputs) == 1


def test_what_export_cannot_follow_is_told() -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(FewbitError, match=r"torch\.export cannot follow the model"):
        capture(Asks(), (pictures(),))
