"""Weights rounded a few rows at a time are those rounded as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbit.kernels.weights import PackedMatrix
from fewbit.nn.swap import quantized_weight
from fewbit.recipe import LayerPlan, Recipe, Scheme, as_recipe
from fewbit.sequential import packing
from fewbit.sequential.packing import pack, swap_tied
from fewbit.sequential.solve import Settings, quantized_weight_of


def plan(scheme: str, name: str = "layer", kind: str = "Linear") -> LayerPlan:
    return LayerPlan(name, kind, Scheme.parse(scheme), "")


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W3A16-g16-asym", "W8A16", "W4A16-tensor", "W2A16-g20"])
@pytest.mark.parametrize("calibrator", ["minmax", "mse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pieces_make_the_whole(
    monkeypatch: pytest.MonkeyPatch, scheme: str, dtype: torch.dtype, calibrator: str
) -> None:
    matrix = torch.randn(37, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    settings, chosen = Settings(Recipe(scheme, weight_calibrator=calibrator)), plan(scheme)
    whole = PackedMatrix.pack(quantized_weight_of(matrix.float(), chosen, settings, None)[0])
    monkeypatch.setattr(packing, "_PIECE", 8 * 40)
    pieces = pack(matrix, chosen, settings)
    assert torch.equal(pieces.codes, whole.codes)
    assert torch.equal(pieces.scale, whole.scale)
    assert (pieces.zero_point is None) == (whole.zero_point is None)
    if pieces.zero_point is not None and whole.zero_point is not None:
        assert torch.equal(pieces.zero_point, whole.zero_point)
    assert (pieces.spec, pieces.shape) == (whole.spec, whole.shape)


@pytest.mark.parametrize("factor", [1e-9, 1.0, 1e6])
def test_scales_beyond_16_bits_are_stored_wider_in_one_pass_too(factor: float) -> None:
    matrix = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) * factor
    chosen = plan("W4A16-g16")
    one = pack(matrix, chosen, Settings(Recipe("W4A16-g16", weight_calibrator="minmax")))
    whole = quantized_weight_of(matrix, chosen, Settings(Recipe("W4A16-g16", weight_calibrator="minmax")), None)[0]
    assert (one.spec, one.scale.dtype) == (whole.spec, whole.spec.scale_dtype)
    assert torch.equal(one.unpack().dequantize(), whole.dequantize())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight  # type: ignore[assignment]


def test_tied_layers_share_their_codes() -> None:
    model = Tied()
    swap_tied(model, [plan("W8A16", "embed", "Embedding"), plan("W8A8-dynamic", "head")], Settings(as_recipe("W8A16")))
    embed, head = quantized_weight(model.embed), quantized_weight(model.head)
    assert embed.packed is head.packed
    assert (embed.input_quantizer, str(head.input_quantizer)) == (None, "DynamicQuantizer(int8/token/sym)")
