from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_cases import convnet, mlp, run, saved

from fewbit.errors import FewbitError
from fewbit.onnxgraph import file


def test_a_model_is_read_and_written_back_the_same(tmp_path: Path) -> None:
    source = saved(mlp(), tmp_path)
    model = file.read(source)
    written = file.write(model, tmp_path / "again.onnx")
    x = {"x": np.ones((2, 32), np.float32)}
    np.testing.assert_array_equal(run(source, x)[0], run(written, x)[0])
    assert onnx.load(written).metadata_props[0].value == "kept"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_existing_output_is_kept(tmp_path: Path) -> None:
    source = saved(mlp(), tmp_path)
    with pytest.raises(FewbitError, match="exists already"):
        file.write(file.read(source), source)


def test_external_data_is_mapped_and_inlined_when_written(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(mlp(), source, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=False)
    model = file.read(source)
    written = file.write(model, tmp_path / "whole.onnx")
    (tmp_path / "w.bin").unlink()
    assert run(written, {"x": np.ones((1, 32), np.float32)})[0].shape == (1, 10)


def test_large_models_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(mlp(), tmp_path)
    model = file.read(source)
    monkeypatch.setattr(file, "INLINE_LIMIT", 1000)
    written = file.write(model, tmp_path / "split.onnx")
    assert (tmp_path / "split.onnx.data").stat().st_size > 32 * 48 * 4
    assert written.stat().st_size < 3000
    x = {"x": np.ones((2, 32), np.float32)}
    np.testing.assert_array_equal(run(source, x)[0], run(written, x)[0])
    with pytest.raises(FewbitError, match="2 GB"):
        file.serialize(model)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "no ONNX model"), (b"\x00\x01garbage" * 9, "no ONNX model"), (b"hello", "no ONNX model")],
)
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(FewbitError, match=told):
        file.read(path)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = saved(convnet(), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FewbitError, match=r"model\.onnx"):
        file.read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FewbitError, match="does not exist"):
        file.read(tmp_path / "none.onnx")
    with pytest.raises(FewbitError, match="is a folder"):
        file.read(tmp_path)


@pytest.mark.parametrize("opset", [9, 99])
def test_opsets_beyond_what_is_supported_are_refused(tmp_path: Path, opset: int) -> None:
    proto = mlp()
    proto.opset_import[0].version = opset
    with pytest.raises(FewbitError, match=rf"node .* of opset {opset}"):
        file.read(saved(proto, tmp_path))


def test_missing_short_and_escaping_external_data_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    onnx.save(mlp(), source, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=False)
    data = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(data[:100])
    with pytest.raises(FewbitError, match=r"w\.bin ends before tensor"):
        file.read(source)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(FewbitError, match=r"tensor 'first\.w' is missing; put w\.bin"):
        file.read(source)
    proto = onnx.load(source, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../secret"
    source.write_bytes(proto.SerializeToString())
    with pytest.raises(FewbitError, match="points outside"):
        file.read(source)


@pytest.mark.parametrize(
    ("kind", "told"), [("NoSuchOperator", "act_node"), ("Concat", "act_node"), ("Upsample", "act_node")]
)
def test_a_node_that_its_opset_does_not_know_is_named(tmp_path: Path, kind: str, told: str) -> None:
    proto = mlp()
    proto.graph.node[2].op_type = kind
    with pytest.raises(FewbitError, match=told):
        file.read(saved(proto, tmp_path))


def test_a_node_that_reads_nothing_is_named(tmp_path: Path) -> None:
    proto = mlp()
    proto.graph.node[2].input[0] = "nowhere"
    with pytest.raises(FewbitError, match=r"node 'act_node' \(Relu\) reads 'nowhere'"):
        file.read(saved(proto, tmp_path))


def test_bytes_count_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=False)
    whole = file.size(saved(mlp(), tmp_path, "whole.onnx"))
    assert abs(file.size(path) - whole) < 1500
