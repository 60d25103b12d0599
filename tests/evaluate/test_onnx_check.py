"""The outputs of quantized ONNX files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_cases import Maker, convnet, pictures, saved, wide

import fewbit
from fewbit.errors import FewbitError, FewbitWarning
from fewbit.evaluate.onnx_check import doubt


def made(folder: Path, proto: onnx.ModelProto, **more: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FewbitWarning)
        data = [pictures(8), pictures(8, seed=1)]
        result = fewbit.quantize(saved(proto, folder), "W8A8", data, output=folder / "out.onnx", **more)
    found = [str(w.message) for w in caught if issubclass(w.category, FewbitWarning)]
    assert [note for note in result.notes if "hardly of use" in note] == found
    return found


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_a_channel_that_leaves_the_others_no_codes_is_told(tmp_path: Path, target: str) -> None:
    (sentence,) = made(tmp_path, wide(1e6), target=target)
    assert "output 'logits' of the quantized model" in sentence
    assert "node 'b_node'" in sentence


@pytest.mark.parametrize(("factor", "algorithm"), [(1.0, "auto"), (1e6, "equalize")])
def test_nothing_is_told_where_all_is_well(tmp_path: Path, factor: float, algorithm: str) -> None:
    assert made(tmp_path, wide(factor), algorithm=algorithm) == []


def test_a_file_of_a_fixed_batch_is_run_whole(tmp_path: Path) -> None:
    proto = wide(1e6)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    (sentence,) = made(tmp_path, proto)
    assert "node 'b_node'" in sentence


def test_what_the_runtime_refuses_is_an_error_here_and_a_note_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(FewbitError, match="ONNX Runtime refuses"):
        doubt(saved(convnet(), tmp_path), broken, pictures(2), as_written=True)

    def fail(*_: object, **__: object) -> None:
        raise FewbitError("no such operator")

    monkeypatch.setattr("fewbit.evaluate.onnx_check.doubt", fail)
    result = fewbit.quantize(saved(convnet(), tmp_path), "W8A8", [pictures()], output=tmp_path / "out.onnx")
    assert "the outputs were not compared with the float model's: no such operator" in result.notes


def test_a_file_that_draws_random_numbers_raises_no_false_alarm(tmp_path: Path) -> None:
    m = Maker()
    y = m.conv("x", "first", 4, 3)
    m.node("Add", [y, m.node("RandomNormalLike", [y], "noise", scale=100.0)], "y")
    proto = m.model({"x": ["n", 3, 16, 16]}, ["y"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FewbitWarning)
        result = fewbit.quantize(saved(proto, tmp_path), "W8A16", [pictures()], output=tmp_path / "out.onnx")
    assert not [note for note in result.notes if "output" in note]


def test_a_finite_mask_does_not_hide_a_lost_output(tmp_path: Path) -> None:
    proto = wide(1e6)
    mask = np.array([0, 0, 0, 0, -1e9], np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(mask, "mask"))
    proto.graph.node.append(helper.make_node("Add", ["logits", "mask"], ["masked"], name="mask_node"))
    proto.graph.output[0].name = "masked"
    (sentence,) = made(tmp_path, proto)
    assert "output 'masked' of" in sentence
