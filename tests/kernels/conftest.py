"""Property tests measure what is right, not how long the first call of a kernel takes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
torch.set_num_threads(1)


@pytest.fixture(params=["", "portable", "reference"], ids=["fastest", "portable", "reference"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each backend of the integer products in turn; the fastest is oneDNN where it is exact."""
    name: str = request.param
    monkeypatch.setenv("FEWBIT_ISA", name)
    return name
