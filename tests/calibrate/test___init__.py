"""Finding calibrators by name, and solving a tensor at hand with any of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fewbit import calibrate
from fewbit.calibrate import minmax, percentile
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec


def test_names_are_the_files_that_solve() -> None:
    found = calibrate.names()
    assert found == sorted(found)
    assert {"minmax", "moving_average", "percentile", "mse", "entropy", "aciq"} <= set(found)
    assert not {"histogram", "moments", "range", "statistic"} & set(found)
    folder = Path(calibrate.__file__).parent
    assert all((folder / f"{name}.py").exists() for name in found)


def test_get_is_the_module() -> None:
    assert calibrate.get("minmax") is minmax


@pytest.mark.parametrize("name", ["", "kl", "histogram", "MinMax", "collect"])
def test_a_wrong_name_is_told_the_right_ones(name: str) -> None:
    with pytest.raises(FewbitError, match=r"no calibrator is called .*; there are aciq, best, entropy, minmax"):
        calibrate.get(name)


def test_solve_tensor_takes_names_and_modules_strings_and_specs() -> None:
    x = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    for calibrator in ("minmax", minmax):
        for spec in ("int8/channel/sym", QSpec.parse("int8/channel/sym")):
            assert torch.equal(calibrate.solve_tensor(calibrator, x, spec).hi, x.abs().amax(1))


def test_solve_tensor_passes_options_on() -> None:
    x = torch.arange(101.0)
    found = calibrate.solve_tensor("percentile", x, "uint8/tensor/asym", percentile.Options(50.0))
    assert found.hi.item() == 50


@pytest.mark.parametrize("name", calibrate.names())
def test_solve_tensor_names_the_tensor_in_errors(name: str) -> None:
    with pytest.raises(FewbitError, match=r"blocks\.0\.weight holds NaN"):
        calibrate.solve_tensor(name, torch.tensor([1.0, float("nan")]), "int8/tensor/sym", name="blocks.0.weight")
