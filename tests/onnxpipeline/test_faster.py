from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_cases import as_ir, branches, convnet, pictures, run, saved

import fewbit
from fewbit.errors import FewbitError
from fewbit.evaluate.speed import Timing
from fewbit.onnxgraph import layers, placement, targets
from fewbit.onnxgraph.simplify import simplify
from fewbit.onnxpipeline import faster


def found_regions(proto: Any, target: str = "onnxruntime") -> list[tuple[str, ...]]:
    model = as_ir(proto)
    simplify(model)
    rules = targets.get(target)
    return faster.regions(placement.place(model, layers.find(model), rules), rules)


def test_layers_joined_by_codes_are_one_region() -> None:
    assert [len(names) for names in found_regions(convnet())] == [6]
    assert sorted(map(len, found_regions(branches()))) == [1, 3]  # HardSwish computes in float between them


def quantized(folder: Path, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], Sequence[float]]) -> Any:
    """The result when the two models of each turn take the seconds given for that turn."""
    turns = iter(range(99))

    def times(calls: Sequence[Callable[[], object]], *_: object) -> list[Timing]:
        for call in calls:
            call()
        return [Timing(s, s, s, 1) for s in seconds(next(turns))]

    monkeypatch.setattr(faster, "interleaved_times", times)
    out = folder / "q.onnx"
    data = [pictures(4, size=8)]
    return fewbit.quantize(saved(branches(), folder), "W8A8", data, output=out, only_if_faster=True), out


def test_what_is_not_faster_stays_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, out = quantized(tmp_path, monkeypatch, lambda turn: (1.0, 2.0) if turn else (1.0, 1.005))
    assert [region["kept"] for region in result.regions] == [False, True]
    assert set(result.skipped) == {"stem_node", "side_node", "mixed_node"}
    assert [layer.name for layer in result.layers] == ["out_node"]
    assert "the bias of 1 layer was corrected" in result.notes
    floats = [n.name for n in ir.load(out).graph if n.op_type == "Conv" and n.inputs[1].const_value is not None]
    assert floats == ["stem_node", "side_node", "mixed_node"]


def test_a_model_that_is_nowhere_faster_comes_out_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, out = quantized(tmp_path, monkeypatch, lambda _: (2.0, 1.0))
    assert result.layers == ()
    assert not any("biases" in note for note in result.notes)
    x = {"x": pictures(2, size=8)}
    np.testing.assert_allclose(run(out, x)[0], run(branches(), x)[0], rtol=1e-4, atol=1e-4)


def test_real_measurements_and_engines_that_are_not_here(tmp_path: Path) -> None:
    source = saved(convnet(), tmp_path)
    data = [pictures(4)]
    result = fewbit.quantize(source, "W8A8", data, output=tmp_path / "q.onnx", only_if_faster=True)
    assert result.regions[0]["integers"] > 0
    with pytest.raises(FewbitError, match="cannot be measured"):
        fewbit.quantize(source, "W8A8", data, output=tmp_path / "t.onnx", target="tensorrt", only_if_faster=True)
    with pytest.raises(FewbitError, match="static activations"):
        fewbit.quantize(source, "W8A16", output=tmp_path / "t.onnx", only_if_faster=True)
