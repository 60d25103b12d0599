from __future__ import annotations

from pathlib import Path

import pytest
import torch
from integer_cases import Mixed, Residual, network, pictures, seeded
from torch import Tensor, nn

import fewbit
from fewbit.engines import litert
from fewbit.errors import FewbitError
from fewbit.integer import integer_network
from fewbit.integer.agreement import agreement
from fewbit.integer.fixed import FixedPoint
from fewbit.integer.tflite import int8, write

pytest.importorskip("ai_edge_litert")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Joined(nn.Module):
    """Channels of one scale joined, a grouped-by-channel convolution with dilation, and a linear layer between
    layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.c = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.d, self.e = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.a(x), self.b(x)], dim=1)
        pooled = torch.nn.functional.adaptive_avg_pool2d(torch.relu(self.c(joined)), 1)
        return self.e(torch.relu(self.d(pooled.flatten(1))))


@pytest.mark.parametrize("recipe", ["W8A8", "W4A8"])
@pytest.mark.parametrize(("kernels", "rounding"), [("reference", "double"), ("fast", "single")])
@pytest.mark.parametrize("kind", [Residual, Joined])
def test_integer_arithmetic_is_that_of_litert_bit_for_bit(
    kind: type[nn.Module], kernels: str, rounding: str, recipe: str
) -> None:
    found = integer_network(fewbit.quantize(seeded(kind()), recipe, [pictures()]), [pictures()])
    codes = litert.Engine(found, [pictures()], kernels=kernels).codes(pictures())
    rows = agreement(found, codes, FixedPoint(found, rounding))  # type: ignore[arg-type]
    assert len(rows) == sum(node.integer and node.name in found.affine for node in found.nodes)
    # LiteRT's plain kernel of linear layers multiplies two scales in float32, which moves a tie now and then.
    allowed = [row for row in rows if row.op == "linear" and kernels == "reference" and row.largest <= 1]
    off = [row for row in rows if row.different and row not in allowed]
    assert not off, off


def test_the_whole_run_gives_the_same_outputs() -> None:
    found = network(Residual)
    engine = litert.Engine(found, [pictures()], kernels="reference")
    assert torch.allclose(engine(pictures())[0], FixedPoint(found, "double")(pictures())[0], atol=1e-5)


def test_a_file_is_written(tmp_path: Path) -> None:
    data, index = write(network(Residual), [pictures()], tmp_path / "net.tflite")
    assert (tmp_path / "net.tflite").read_bytes() == data
    assert data[4:8] == b"TFL3"
    assert set(index) >= set(network(Residual).affine)


def test_codes_are_counted_from_minus_128() -> None:
    for affine in network(Residual).affine.values():
        scale, zero = int8(affine)
        assert scale == affine.scale
        assert zero == affine.zero_point - 128


def test_what_cannot_be_written_is_named() -> None:
    with pytest.raises(FewbitError, match=r"hardswish.* is not written to TensorFlow Lite"):
        write(network(Mixed), [pictures()])


def test_another_shape_than_the_examples_is_refused() -> None:
    with pytest.raises(FewbitError, match="inputs of the shapes"):
        litert.Engine(network(Residual), [pictures()])(pictures(2))


def test_codes_that_end_before_a_byte_does_are_refused() -> None:
    with pytest.raises(FewbitError, match=r"has codes from .* clips at those of 8 bits alone: quantize activations"):
        write(network(Residual, "W4A4"), [pictures()])


def test_what_has_no_form_in_the_file_is_told_by_its_reason() -> None:
    convolutions = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model = fewbit.quantize(seeded(convolutions), "W8A8", [pictures()])
    with pytest.raises(FewbitError, match=r"layer 2: its output stays in float.*a linear layer alone"):
        write(integer_network(model, [pictures()]), [pictures()])

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.a(x).chunk(2, 1)
            return self.b(one + other)

    model = fewbit.quantize(seeded(Halves()), "W8A8", [pictures()])
    with pytest.raises(FewbitError, match="parts of a tensor are not written to TensorFlow Lite"):
        write(integer_network(model, [pictures()]), [pictures()])
