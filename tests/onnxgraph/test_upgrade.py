from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import as_ir, convnet, pictures, run

from fewbit.errors import FewbitError
from fewbit.onnxgraph.upgrade import raise_opset


@pytest.mark.parametrize("opset", [11, 12])
def test_old_models_are_converted_and_compute_the_same(opset: int) -> None:
    proto = convnet(opset)
    model = as_ir(proto)
    assert raise_opset(model, 13) == [f"converted from opset {opset} to 13"]
    assert model.graph.opset_imports[""] == 13
    assert model.graph.inputs[0].name == "x"
    assert model.graph.outputs[0].name == "logits"
    feeds = {"x": pictures()}
    np.testing.assert_allclose(run(proto, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-5)


def test_new_models_stay() -> None:
    model = as_ir(convnet(17))
    assert raise_opset(model, 13) == []
    assert model.graph.opset_imports[""] == 17


def test_int4_needs_opset_21_and_its_ir_version() -> None:
    model = as_ir(convnet(17))
    raise_opset(model, 21)
    assert model.graph.opset_imports[""] == 21
    assert model.ir_version >= 10


def test_a_converter_that_gives_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxscript import version_converter

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no adapter for Scan\nand more")

    monkeypatch.setattr(version_converter, "convert_version", refuse)
    with pytest.raises(FewbitError, match=r"opset 12 cannot be converted to 13: no adapter for Scan$"):
        raise_opset(as_ir(convnet(12)), 13)
    monkeypatch.setattr(version_converter, "convert_version", lambda *_, **__: None)
    with pytest.raises(FewbitError, match="which quantizing needs"):
        raise_opset(as_ir(convnet(12)), 13)
