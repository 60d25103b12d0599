"""Packages are found as files; what is missing is named with its remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fewbit.demo import packages
from fewbit.demo.packages import inside, require_packages
from fewbit.errors import FewbitError, MissingExtraError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that must not be imported."""
    folder = tmp_path / "demo_package_under_test"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')\n")
    (folder / "data" / "x.txt").write_text("hello")
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_files_are_found_without_importing_the_package(package: str) -> None:
    assert inside(package, "data", "x.txt").read_text() == "hello"
    assert package not in sys.modules


def test_a_file_the_package_lacks_is_told(package: str) -> None:
    with pytest.raises(FewbitError, match=r"holds no data/y\.txt; install the version that fewbit\[demo\] names"):
        inside(package, "data", "y.txt")


def test_missing_packages_are_all_named(package: str) -> None:
    require_packages([package])
    with pytest.raises(MissingExtraError) as caught:
        require_packages(["absent_one_under_test", package, "absent_two_under_test"])
    told = str(caught.value)
    assert "packages absent_one_under_test, absent_two_under_test" in told
    assert "pip install 'fewbit[demo]'" in told
    with pytest.raises(MissingExtraError, match="the package absent_one_under_test:"):
        inside("absent_one_under_test", "x")


def test_the_demo_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewbit.demo.run import measure

    monkeypatch.setattr(packages.require_packages, "__defaults__", (("absent_one_under_test",),))
    with pytest.raises(MissingExtraError, match=r"absent_one_under_test: pip install 'fewbit\[demo\]'"):
        measure(quick=True)


def test_checking_for_packages_imports_none_of_them() -> None:
    """`fewbit demo` on a machine without the packages answers at once, and the demo never runs their code."""
    code = (
        "import sys\n"
        "from fewbit.demo import packages\n"
        "try: packages.require_packages()\n"
        "except ImportError: pass\n"
        "assert not set(packages.NEEDED) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
