"""Tests marked `demo` need the packages of fewbit[demo]."""

from __future__ import annotations

import pytest

from fewbit.demo.packages import require_packages
from fewbit.errors import MissingExtraError


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run, and say what is missing."""
    if item.get_closest_marker("demo") is not None:
        try:
            require_packages()
        except MissingExtraError as error:
            pytest.skip(str(error))
