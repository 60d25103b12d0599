from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx_cases import convnet, mlp, pictures, saved

import fewbit
from fewbit.errors import FewbitError
from fewbit.evaluate.onnx_models import compare_onnx


def test_a_model_equals_itself(tmp_path: Path) -> None:
    path = saved(convnet(), tmp_path)
    found = compare_onnx(path, path, [pictures(), pictures(seed=1)], repeats=0)
    names = [row.layer.removesuffix("_node") for row in found.rows]
    assert names == ["stem", "expand", "depth", "project", "last", "logits"]
    assert all(row.sqnr == np.inf for row in found.rows)
    assert found.outputs[0].top1 == 1
    assert (found.batches, found.samples, found.time) == (2, 8, None)


def test_errors_grow_along_a_quantized_model(tmp_path: Path) -> None:
    before, after = saved(convnet(), tmp_path), tmp_path / "q.onnx"
    fewbit.quantize(before, "W8A8", [pictures(16)], output=after, calibrator="minmax")
    found = compare_onnx(before, after, [pictures(8)], repeats=1)
    by_name = {row.name: row.sqnr for row in found.rows}
    assert set(by_name) == {"stem.act", "expand.act", "depth.act", "project", "last.act", "logits"}
    assert by_name["stem.act"] > by_name["last.act"] > 20
    assert found.time is not None
    assert found.bytes_after == after.stat().st_size


def test_models_that_do_not_belong_together_and_no_data(tmp_path: Path) -> None:
    a, b = saved(convnet(), tmp_path, "a.onnx"), saved(mlp(), tmp_path, "b.onnx")
    with pytest.raises(FewbitError, match="do not belong together: the outputs"):
        compare_onnx(a, b, [pictures()])
    with pytest.raises(FewbitError, match="no batches"):
        compare_onnx(a, a, [])
