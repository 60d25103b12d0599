"""What a forward leaves behind is undone."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

import fewbit
from fewbit.nn.preserved import preserved_state


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.linear(x)


def test_values_and_tables_come_back() -> None:
    model = Counting()
    with preserved_state(model):
        model(torch.ones(1, 16))
        assert model.count == 1
        model.count = torch.full((), 7.0)
    assert model.count == 0
    with preserved_state(model):
        fx.symbolic_trace(model)
    assert type(model.count) is Tensor


def test_calibration_and_saving_leave_a_counter_alone(tmp_path) -> None:
    batches = [torch.randn(4, 16) for _ in range(3)]
    quantized = fewbit.quantize(Counting().eval(), "W8A8", batches)
    assert quantized.count == 0
    fewbit.save(quantized, tmp_path / "out")
    assert type(quantized.count) is Tensor
    assert quantized.count == 0
    again = fewbit.load(tmp_path / "out")
    assert torch.equal(again(batches[0]), quantized(batches[0]))
