from __future__ import annotations

import torch
from torch import nn

import fewbit
from fewbit.calibrate import best
from fewbit.nn import info, quantized_layers, quantized_weight


def test_the_least_error_of_the_layers_output_wins() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    data = [torch.randn(256, 16) for _ in range(2)]
    data[0][3, 5] = 400.0
    with torch.no_grad():
        model[0].weight[:, 5] = 0  # the outlier is nothing to the layer
    q = fewbit.quantize(model, "W8A8", data, calibrator="best")
    scales = {}
    for name in ("best", *best.NAMES):
        made = q if name == "best" else fewbit.quantize(model, "W8A8", data, calibrator=name)
        scales[name] = float(quantized_weight(quantized_layers(made)["0"]).input_quantizer.scale)  # type: ignore[union-attr]
    assert scales["best"] in [scales[name] for name in best.NAMES]
    assert scales["best"] < scales["minmax"] / 10
    made = info(q)
    assert made is not None
    assert any(note.startswith("calibrators by the measured error") for note in made.notes)


def test_convolutions_and_the_command_lines_name() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten())
    data = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    q = fewbit.quantize(model, "W8A8", data, calibrator="best")
    with torch.no_grad():
        error = (q(data[0]) - model(data[0])).square().mean() / model(data[0]).square().mean()
    assert float(error) < 1e-3
