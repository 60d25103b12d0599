"""Tests marked `demo` need the packages of fewbit[demo]."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fewbit.demo.packages import require_packages
from fewbit.errors import MissingExtraError


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run, and say what is missing."""
    if item.get_closest_marker("demo") is not None:
        try:
            require_packages()
        except MissingExtraError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a machine shared with others cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
