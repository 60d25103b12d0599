from __future__ import annotations

import pytest
import torch

from fewbit import calibrate
from fewbit.calibrate import best
from fewbit.numbers.affine import fake_quantize, scale_and_zero_point
from fewbit.numbers.spec import QSpec

SPECS = ["uint8/tensor/asym", "int8/tensor/sym", "int4/channel/sym", "uint4/g16/asym"]


def data() -> torch.Tensor:
    x = torch.randn(8, 4096, generator=torch.Generator().manual_seed(0))
    x[2, 5] = 40.0
    return x


def error(x: torch.Tensor, spec: QSpec, name: str) -> float:
    found = calibrate.solve_tensor(name, x, spec)
    scale, zero_point = scale_and_zero_point(found.lo, found.hi, spec)
    return float((fake_quantize(x, spec, scale=scale, zero_point=zero_point) - x).double().square().sum())


@pytest.mark.parametrize("text", SPECS)
def test_never_worse_than_a_candidate_on_the_tensor(text: str) -> None:
    x, spec = data(), QSpec.parse(text)
    served = [name for name in best.NAMES if "g16" not in text or name != "entropy"]
    assert error(x, spec, "best") <= min(error(x, spec, name) for name in served) * (1 + 1e-6)


def test_the_candidates_are_those_of_the_calibrators() -> None:
    x, spec = data(), QSpec.parse("uint8/tensor/asym")
    statistic = best.new_statistic(spec.granularity, best.Options())
    statistic.update(x)
    found = best.candidates(statistic, spec)
    assert list(found) == list(best.NAMES)
    for name, bounds in found.items():
        module = calibrate.get(name)
        expected = module.solve(statistic, spec, module.Options())
        assert torch.equal(bounds.hi, expected.hi)
    groups = QSpec.parse("uint4/g16/asym")
    statistic = best.new_statistic(groups.granularity, best.Options())
    statistic.update(x)
    assert "entropy" not in best.candidates(statistic, groups)


def test_the_output_decides_against_the_squared_error_of_the_input() -> None:
    """An outlier that the weight ignores may be clipped, one that it reads may not."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(1, 512, 8, generator=generator)
    rows[0, :4, 3] = 300.0
    spec = QSpec.parse("uint8/tensor/asym")
    statistic = best.new_statistic(spec.granularity, best.Options())
    statistic.update(rows)
    ranges = {name: bounds for name, bounds in best.candidates(statistic, spec).items() if name != "mse"}
    weight = torch.randn(1, 16, 8, generator=generator)
    reads = best.output_errors(rows, weight, ranges, spec)
    weight[..., 3] = 0
    ignores = best.output_errors(rows, weight, ranges, spec)
    assert min(reads, key=reads.__getitem__) == "minmax"
    assert min(ignores, key=ignores.__getitem__) != "minmax"
