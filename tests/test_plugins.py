"""Packages of plugins: every one finds its modules and no helpers, and says what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

import fewbit.algorithms
import fewbit.calibrate
import fewbit.engines
import fewbit.train.estimators
from fewbit.errors import FewbitError
from fewbit.plugins import Plugins

PACKAGES = [
    (fewbit.algorithms, "quantize_weight", "algorithm"),
    (fewbit.calibrate, "solve", "calibrator"),
    (fewbit.engines, "Engine", "engine"),
    (fewbit.train.estimators, "weight_quantizer", "estimator"),
]


@pytest.mark.parametrize(("package", "defines", "kind"), PACKAGES)
def test_a_file_that_defines_it_is_a_plugin_by_its_name(package: object, defines: str, kind: str) -> None:
    folder = Path(str(package.__file__)).parent  # type: ignore[attr-defined]
    files = [file for file in folder.glob("*.py") if file.stem != "__init__"]
    wanted = [f.stem for f in files if f"\ndef {defines}(" in f.read_text() or f"\nclass {defines}" in f.read_text()]
    plugins = Plugins(package.__name__, defines, kind)  # type: ignore[attr-defined]
    assert plugins.names() == sorted(wanted) == package.names()  # type: ignore[attr-defined]
    for name in wanted:
        assert hasattr(plugins.get(name), defines)


@pytest.mark.parametrize(("package", "_defines", "kind"), PACKAGES)
def test_another_name_is_refused_with_what_there_is(package: object, _defines: str, kind: str) -> None:
    some = package.names()[0]  # type: ignore[attr-defined]
    with pytest.raises(FewbitError, match=f"no {kind} is called '{some}x'; there are .*; did you mean {some}?"):
        package.get(f"{some}x")  # type: ignore[attr-defined]
    for name in ("__init__", "", "_lattice", 3):
        with pytest.raises(FewbitError, match=f"no {kind} is called"):
            package.get(name)  # type: ignore[attr-defined]
