"""The theory against simulation and against numeric integration that shares no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fewbit.numbers import theory
from fewbit.numbers.affine import quantize, scale_and_zero_point

GAUSSIAN = {2: 1.71, 3: 2.15, 4: 2.55, 5: 2.93, 6: 3.28, 7: 3.61, 8: 3.92}
LAPLACE = {2: 2.83, 3: 3.89, 4: 5.03, 5: 6.20, 6: 7.41, 7: 8.64, 8: 9.89}
X = np.linspace(0.0, 40.0, 200_001)  # the right half of the axis; both densities are even
DENSITY = {"gaussian": np.exp(-X * X / 2) / math.sqrt(2 * math.pi), "laplace": np.exp(-X) / 2}


def clipping(kind: str, alpha: float) -> float:
    """2·∫_α^∞ (x − α)² p(x) dx by the trapezoid rule."""
    return float(2 * np.trapezoid(np.where(alpha < X, (X - alpha) ** 2, 0.0) * DENSITY[kind], X))


def simulated(kind: str, alpha: float, bits: int) -> float:
    """Mean squared error of the midrise quantizer with 2^bits cells over [−α, α], by integration."""
    step = 2 * alpha / 2**bits
    cell = np.clip(np.floor(X / step), 0, 2 ** (bits - 1) - 1)
    return float(2 * np.trapezoid((X - (cell + 0.5) * step) ** 2 * DENSITY[kind], X))


def argmin(function, low: float, high: float) -> float:
    """The best of a fine grid."""
    alphas = np.linspace(low, high, 161)
    return float(alphas[np.argmin([function(a) for a in alphas])])


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_the_best_gaussian_clip_is_the_lectures(bits: int) -> None:
    assert theory.gaussian_clip(bits) == pytest.approx(GAUSSIAN[bits], rel=0.01)


@pytest.mark.parametrize("bits", LAPLACE)
def test_the_best_laplace_clip_is_the_papers(bits: int) -> None:
    assert theory.laplace_clip(bits) == pytest.approx(LAPLACE[bits], rel=0.01)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize(("kind", "clip"), [("gaussian", theory.gaussian_clip), ("laplace", theory.laplace_clip)])
def test_the_clip_minimises_clipping_plus_rounding(kind: str, clip, bits: int) -> None:
    found = clip(bits)
    best = argmin(lambda a: clipping(kind, a) + a * a / (3 * 4**bits), 0.8 * found, 1.2 * found)
    assert found == pytest.approx(best, rel=0.005)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize(("kind", "clip"), [("gaussian", theory.gaussian_clip), ("laplace", theory.laplace_clip)])
def test_one_sided_data_has_the_clip_of_one_more_bit(kind: str, clip, bits: int) -> None:
    """2^b cells over [0, α] of the folded density: step α/2^b."""
    found = clip(bits, one_sided=True)
    best = argmin(lambda a: clipping(kind, a) + (a / 2**bits) ** 2 / 12, 0.8 * found, 1.2 * found)
    assert found == pytest.approx(best, rel=0.005)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("kind", "clip"), [("gaussian", theory.gaussian_clip), ("laplace", theory.laplace_clip)])
def test_a_simulated_quantizer_agrees(kind: str, clip, bits: int) -> None:
    """The formula takes rounding as step²/12 everywhere; a real quantizer agrees, more with more bits."""
    found = clip(bits)
    best = argmin(lambda a: simulated(kind, a, bits), 0.6 * found, 1.6 * found)
    assert simulated(kind, found, bits) <= simulated(kind, best, bits) * {2: 1.12, 3: 1.06}.get(bits, 1.03)
    if bits >= 6:
        assert found == pytest.approx(best, rel=0.02 if kind == "gaussian" else 0.03)


def test_fewbits_own_quantizer_is_best_near_the_clip() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400_000, generator=generator, dtype=torch.float64)

    def error(alpha: float) -> float:
        # 2^b − 1 steps over [−α, α]; at 8 bits the difference to the formula's 2^b cells is 0.4%.
        scale, zero_point = scale_and_zero_point(torch.tensor(-alpha), torch.tensor(alpha), "uint8/tensor/asym")
        values = quantize(x, "uint8/tensor/asym", scale=scale, zero_point=zero_point).dequantize().double()
        return float((x - values).square().mean())

    best = argmin(error, 3.4, 4.5)
    assert theory.gaussian_clip(8) == pytest.approx(best, rel=0.03)


@pytest.mark.parametrize(
    "spec",
    ["int8/tensor/sym", "uint8/tensor/asym", "int6/tensor/sym", "uint4/tensor/asym", "int16/tensor/sym"],
)
def test_uniform_noise_measures_step_squared_over_12(spec: str) -> None:
    x = torch.rand(1_000_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), spec)
    error = (quantize(x, spec, scale=scale, zero_point=zero_point).dequantize().double() - x).square().mean()
    assert float(error) == pytest.approx(theory.rounding_mse(float(scale)), rel=0.01)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_sqnr_of_full_scale_uniform_noise_is_6_db_a_bit(bits: int) -> None:
    x = torch.rand(1_000_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    spec = f"uint{bits}/tensor/asym"
    scale, zero_point = scale_and_zero_point(x.min(), x.max(), spec)
    measured = theory.sqnr(x, quantize(x, spec, scale=scale, zero_point=zero_point).dequantize())
    # 2^b − 1 steps, not 2^b: 0.56 dB at 4 bits
    assert measured == pytest.approx(theory.sqnr_of_bits(bits) + 20 * math.log10((2**bits - 1) / 2**bits), abs=0.05)
    assert theory.sqnr_of_bits(bits) == pytest.approx(6.0206 * bits, rel=1e-4)


def test_sqnr_by_hand() -> None:
    x = torch.tensor([3.0, 4.0])
    assert theory.sqnr(x, torch.tensor([3.0, 4.5])) == pytest.approx(20.0)
    assert theory.sqnr(x, x) == math.inf
    assert theory.sqnr(torch.zeros(2), torch.zeros(2)) == math.inf
    assert theory.sqnr(torch.zeros(2), x) == -math.inf
    assert theory.sqnr(x.half(), torch.zeros(2)) == 0.0


def test_the_split_by_hand() -> None:
    x = torch.tensor([-3.0, -1.0, 0.25, 1.0, 2.0])
    xhat = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0])
    split = theory.error_split(x, xhat, torch.tensor(-1.0), torch.tensor(1.0))
    assert split.clipping_mse == pytest.approx((4 + 1) / 5)
    assert split.rounding_mse == pytest.approx(0.0625 / 5)
    assert split.clipped_fraction == pytest.approx(2 / 5)
    assert split.mse == pytest.approx(float((x - xhat).square().mean()))


def test_the_split_takes_a_range_for_each_channel() -> None:
    x = torch.tensor([[2.0, 0.5], [2.0, 0.5]])
    xhat = torch.tensor([[1.0, 0.5], [2.0, 0.0]])
    split = theory.error_split(x, xhat, torch.tensor([[-1.0], [-4.0]]), torch.tensor([[1.0], [4.0]]))
    assert (split.clipping_mse, split.rounding_mse, split.clipped_fraction) == (0.25, 0.0625, 0.25)


def test_a_gaussian_clipped_at_its_best_shows_both_parts() -> None:
    bits = 4
    alpha = theory.gaussian_clip(bits)
    x = torch.randn(1_000_000, generator=torch.Generator().manual_seed(5))
    step = 2 * alpha / 2**bits
    xhat = ((x / step).floor().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5) * step
    split = theory.error_split(x, xhat, torch.tensor(-alpha), torch.tensor(alpha))
    # What is clipped goes to the middle of the last cell, half a step inside the clip.
    beyond = np.where(alpha < X, (X - (alpha - step / 2)) ** 2, 0.0)
    assert split.clipping_mse == pytest.approx(2 * np.trapezoid(beyond * DENSITY["gaussian"], X), rel=0.06)
    assert split.rounding_mse == pytest.approx(theory.rounding_mse(step), rel=0.02)


@pytest.mark.parametrize(
    ("count", "bits", "blocks", "zero_points", "nbytes"),
    [
        (6400, 8, 1, False, 6404),
        (15, 4, 3, False, 20),
        (192, 3, 6, True, 72 + 24 + 3),
        (9, 1, 1, True, 2 + 4 + 1),
    ],
)
def test_packed_bytes(count: int, bits: int, blocks: int, zero_points: bool, nbytes: int) -> None:
    assert theory.packed_bytes(count, bits, blocks, zero_points) == nbytes
