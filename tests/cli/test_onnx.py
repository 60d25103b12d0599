from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx_cases import Maker, convnet, mlp, pictures, saved, wide
from typer.testing import CliRunner

from fewbit.cli import app


def invoke(*arguments: object) -> tuple[int, dict[str, object], str]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout or "{}"), done.stderr


def test_a_file_is_quantized_from_the_command_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures(8))
    out = tmp_path / "out.onnx"
    code, told, _ = invoke(
        "quantize", saved(convnet(), tmp_path), "--recipe", "W8A8", "--data", tmp_path / "x.npy", "-o", out
    )
    assert code == 0
    assert len(told["layers"]) == 6  # type: ignore[arg-type]
    assert onnx.load(out).graph.output[0].name == "logits"


def test_a_result_that_is_hardly_of_use_is_one_sentence_on_stderr_and_a_note(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures(8))
    arguments = ("quantize", saved(wide(1e6), tmp_path), "--data", tmp_path / "x.npy", "-o", tmp_path / "out.onnx")
    code, told, stderr = invoke(*arguments)
    assert code == 0
    lines = [line for line in stderr.splitlines() if line.startswith("fewbit: warning: output 'logits' of")]
    assert len(lines) == 1
    assert lines[0].removeprefix("fewbit: warning: ") in told["notes"]  # type: ignore[operator]
    _, _, stderr = invoke(*arguments, "--overwrite", "--algorithm", "equalize")
    assert "warning" not in stderr


def test_tables_for_people(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["quantize", str(saved(mlp(), tmp_path)), "-r", "W8A16", "-o", str(tmp_path / "out.onnx")]
    )
    assert done.exit_code == 0
    assert "2 layers quantized for onnxruntime" in done.stdout


def test_wrong_names_and_files_are_one_sentence(tmp_path: Path) -> None:
    source, out = saved(mlp(), tmp_path), tmp_path / "out.onnx"
    for arguments, sentence in [
        (["--target", "tflite"], "no target"),
        (["--calibrator", "best_of_all"], "no calibrator"),
        (["--recipe", "W8A8"], "calibration data"),
        (["--data", tmp_path / "none"], "does not exist"),
    ]:
        code, told, _ = invoke("quantize", source, "-o", out, *arguments)
        assert code == 2
        assert sentence in str(told["error"])
        assert not out.exists()


def test_options_that_do_nothing_for_a_file_are_told(tmp_path: Path) -> None:
    source, out = saved(mlp(), tmp_path), tmp_path / "out.onnx"
    for arguments, sentence in [
        (["--format", "gguf"], "--format does nothing for an ONNX file; leave it out"),
        (["--dtype", "float16", "--restart"], "--dtype and --restart do nothing for an ONNX file; leave them out"),
        (["--tokenizer", tmp_path], "--tokenizer does nothing"),
        (["--memory", "1GiB"], "--memory does nothing"),
    ]:
        code, told, _ = invoke("quantize", source, "-r", "W8A16", "-o", out, *arguments)
        assert (code, out.exists()) == (2, False)
        assert sentence in str(told["error"])
    for arguments in (["--target", "openvino"], ["--no-equalize"], ["--only-if-faster"]):
        code, told, _ = invoke("quantize", "nets:cnn", "-r", "W8A16", "-o", tmp_path / "out", *arguments)
        assert code == 2
        assert f"{arguments[0]} does nothing for a PyTorch model" in str(told["error"])


def test_the_output_is_a_file_of_its_kind_and_not_the_recipe(tmp_path: Path) -> None:
    source = saved(mlp(), tmp_path)
    code, told, _ = invoke("quantize", source, "-r", "W8A16", "-o", tmp_path / "folder")
    assert code == 2
    assert "name an output that ends in .onnx" in str(told["error"])
    recipe = tmp_path / "recipe.onnx"
    recipe.write_text('scheme = "W8A16"\n')
    code, told, _ = invoke("quantize", source, "-r", recipe, "-o", recipe, "--overwrite")
    assert code == 2
    assert "is the source itself" in str(told["error"])
    assert recipe.read_text() == 'scheme = "W8A16"\n'


def test_comparing_files_writes_no_page_and_both_are_files(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures(8))
    source, data = saved(convnet(), tmp_path), ("--data", tmp_path / "x.npy")
    before = source.read_bytes()
    code, told, _ = invoke("compare", source, source, *data, "--html", source, "--overwrite")
    assert code == 2
    assert "--html does nothing for ONNX files" in str(told["error"])
    assert source.read_bytes() == before
    for models in ((source, tmp_path), ("nets:cnn", source)):
        code, told, _ = invoke("compare", *models, *data)
        assert code == 2
        assert "two ONNX files or two PyTorch models" in str(told["error"])


def test_two_files_are_compared_and_one_inspected(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures(8))
    source, out = saved(convnet(), tmp_path), tmp_path / "out.onnx"
    assert invoke("quantize", source, "--data", tmp_path / "x.npy", "-o", out, "--only-if-faster")[0] == 0
    code, told, _ = invoke("compare", source, out, "--data", tmp_path / "x.npy", "--repeats", 1)
    assert code == 0
    assert told["samples"] == 8
    code, told, _ = invoke("inspect", out)
    assert code == 0
    assert told["opsets"] == {"": 17}
    assert invoke("inspect", out, "--recipe", "W8A8")[0] == 2


def test_neither_the_model_nor_the_data_is_replaced(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures(4))
    source, data = saved(convnet(), tmp_path), tmp_path / "x.npy"
    before = source.read_bytes(), data.read_bytes()
    for output in (source, data, tmp_path / "none" / ".." / "model.onnx"):
        code, told, _ = invoke("quantize", source, "--data", data, "-o", output, "--overwrite")
        assert code == 2
        assert "is the source itself" in str(told["error"])
    assert (source.read_bytes(), data.read_bytes()) == before


def test_the_help_tells_of_onnx_files() -> None:
    for command in ("quantize", "compare", "inspect"):
        text = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout.split())
        assert "an .onnx file" in text, command
        assert ("FILE.onnx" in text) == (command != "inspect")


def test_a_file_that_grew_is_not_called_smaller(tmp_path: Path) -> None:
    m = Maker()
    m.conv("x", "y", 2, 3, 1)
    source = saved(m.model({"x": ["n", 3, 4, 4]}, ["y"]), tmp_path)
    done = CliRunner().invoke(app, ["quantize", str(source), "-r", "W8A16", "-o", str(tmp_path / "out.onnx")])
    assert done.exit_code == 0
    assert "× larger)" in done.stdout
