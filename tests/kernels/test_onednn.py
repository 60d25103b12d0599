"""oneDNN is used only where it is exact, and there it is exact for more than the probe tries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from product_cases import exact_conv, integers
from torch import Tensor

from fewbit.kernels import onednn
from fewbit.kernels.products import Geometry

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="oneDNN has no exact int8 product on this machine")


@pytest.fixture
def fresh() -> Iterator[None]:
    """The answer is asked anew, and the wrong one forgotten."""
    onednn.available.cache_clear()
    yield
    onednn.available.cache_clear()


def test_the_deepest_sum_fits_int32_and_one_more_does_not() -> None:
    assert 255 * 128 * onednn.MAX_DEPTH < 2**31 <= 255 * 128 * (onednn.MAX_DEPTH + 1)


def test_a_product_that_saturates_is_not_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``vpmaddubsw`` does: the sum of two products is clipped at int16."""

    def saturating(
        x: Tensor, x_scale: float, x_zero_point: int, packed: Tensor, scale: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        pairs = x.double().reshape(x.shape[0], 1, -1, 2) * packed.double().reshape(1, packed.shape[0], -1, 2)
        sums = pairs.sum(-1).clamp(-32768, 32767).sum(-1)
        return (sums - x_zero_point * packed.double().sum(1)).float()

    monkeypatch.setattr(onednn, "pack_linear", lambda codes: codes)
    monkeypatch.setattr(onednn, "linear", saturating)
    assert not onednn.available()


def test_a_convolution_that_is_off_by_one_is_not_used(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    right = onednn.conv

    def wrong(*args: object) -> Tensor:
        result = right(*args).clone()  # type: ignore[arg-type]
        result[0, 0, 0, 0] += 1
        return result

    monkeypatch.setattr(onednn, "conv", wrong)
    assert not onednn.available()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, NotImplementedError])
def test_a_torch_without_the_operators_is_told_quietly(
    error: type[Exception], fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(codes: Tensor) -> Tensor:
        raise error("no such operator")

    monkeypatch.setattr(onednn, "pack_linear", missing)
    assert not onednn.available()


@needs_onednn
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 15, 16, 17, 31, 64, 65, 127, 256])
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_linear_gives_exact_integers_for_every_shape(depth: int, rows: int) -> None:
    for n, zero, bits in ((1, 0, "random"), (5, 128, "random"), (33, 255, "random"), (16, 255, "ends")):
        low, high = (0, 1) if bits == "ends" else (0, 255)
        x = (integers(low, high, (rows, depth), depth + n) * (255 if bits == "ends" else 1)).to(torch.uint8)
        weight = integers(-128, 127, (n, depth), n).to(torch.int8)
        if bits == "ends":
            weight = torch.where(weight < 0, -128, 127).to(torch.int8)
        result = onednn.linear(x, 1.0, zero, onednn.pack_linear(weight), torch.ones(n))
        assert torch.equal(result.double(), (x.double() - zero) @ weight.double().t())


@needs_onednn
def test_linear_at_the_greatest_depth_does_not_overflow() -> None:
    depth = onednn.MAX_DEPTH
    x = torch.full((2, depth), 255, dtype=torch.uint8)
    weight = torch.full((3, depth), -128, dtype=torch.int8)
    weight[1] = 127
    for zero in (0, 255):
        result = onednn.linear(x, 1.0, zero, onednn.pack_linear(weight), torch.ones(3))
        wanted = (x[:1].double() - zero) @ weight.double().t()
        assert torch.equal(result, wanted.float().expand(2, 3))


@needs_onednn
def test_linear_applies_scales_zero_point_and_bias() -> None:
    x = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8)
    packed = onednn.pack_linear(torch.tensor([[1, 2], [3, -4], [0, 1]], dtype=torch.int8))
    result = onednn.linear(x, 0.5, 10, packed, torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 100.0, -1.0]))
    # x − 10 = [[0, 10], [20, 30]]
    assert result.tolist() == [[10.0, 60.0, 19.0], [40.0, 40.0, 59.0]]


@needs_onednn
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("zero", [0, 77, 255])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pad"), [(1, 1, 1, 0), (3, 1, 1, 1), (3, 2, 1, 1), (2, 1, 2, 2), (3, 3, 2, 0)]
)
def test_conv_gives_exact_integers(
    axes: int, groups: int, zero: int, kernel: int, stride: int, dilation: int, pad: int
) -> None:
    each = ((kernel,) * axes, (stride,) * axes, (pad,) * axes, (dilation,) * axes)
    geometry = Geometry(each[0], each[1], ((pad, pad),) * axes, each[3], groups)
    x = integers(0, 255, (2, 8, *(14, 11, 9)[:axes]), kernel).to(torch.uint8)
    x[0] = 255
    weight = integers(-128, 127, (8 if groups == 8 else 16, 8 // groups, *each[0]), groups).to(torch.int8)
    weight[::3] = -128
    scale = torch.ones(weight.shape[0])
    packed = onednn.pack_conv(weight, scale, zero, *each[1:], groups)
    result = onednn.conv(x, 1.0, zero, packed, scale, None, *each[1:], groups)
    assert torch.equal(result.double(), exact_conv(x.double() - zero, weight.double().flatten(1), geometry))
