"""Small products: the tests of the benchmarks measure nothing."""

from __future__ import annotations

import pytest

from fewbit.bench.case import Case


@pytest.fixture(params=[(4, 32), (8, 0)], ids=["int4 g32", "int8"])
def case(request: pytest.FixtureRequest) -> Case:
    bits, group = request.param
    return Case(3, 128, 96, bits, group, footprint=1)
