"""The race of quantizing a weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewbit.bench import passes
from fewbit.numbers.spec import QSpec


def test_everyone_is_timed() -> None:
    rows = passes.race_passes(size=64, group=32, rounds=1)
    names = [row.name for row in rows]
    assert {"fewbit min-max", "fewbit MSE, 80 clips", "torch", "numpy"} <= set(names)
    assert rows == sorted(rows, key=lambda row: row.ms)
    assert max(row.against_best for row in rows if not row.name.startswith("fewbit")) == 1


def test_the_peers_round_as_fewbit_does() -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    found = passes._contenders(weight, 32)
    own = found["fewbit min-max"]()
    torch_codes, torch_scale = passes._torch(weight, 32)
    numpy_codes, numpy_scale = passes._numpy(weight.numpy(), 32)
    assert torch.equal(torch_codes, torch.from_numpy(numpy_codes))
    assert np.array_equal(torch_scale.numpy(), numpy_scale)
    same = (own.codes == torch_codes.reshape(-1).view(torch.uint8)).float().mean()  # type: ignore[attr-defined]
    assert same > 0.98  # fewbit rounds the scale to float16 before the codes
    assert own.spec == QSpec.parse("int4/g32/sym/f16")  # type: ignore[attr-defined]


def test_onnx_runtime_is_asked_where_it_is_there() -> None:
    pytest.importorskip("onnxruntime")
    assert "ONNX Runtime C++" in passes._contenders(torch.randn(32, 64), 32)
