"""``fewbit quantize FOLDER`` from the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_folder
from typer.testing import CliRunner

import fewbit
from fewbit.cli import app
from fewbit.cli.folder import calibration_windows
from fewbit.cli.options import DataOptions
from fewbit.nn import quantized_layers


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for name in ("one.txt", "two.txt"):
        (tmp_path / "texts" / name).write_text("the quick brown fox jumps over the lazy dog. " * 12)
    return tiny_folder(tmp_path / "model", "llama")


def quantize(source: Path, *more: Any) -> Any:
    done = CliRunner().invoke(app, ["quantize", str(source), *map(str, more), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_without_data(source: Path, tmp_path: Path) -> None:
    code, told = quantize(source, "-r", "W4A16-g16", "-o", tmp_path / "out")
    assert code == 0, told
    assert (told["data"], told["algorithm"], told["folded"]) == (None, "hqq", [])
    assert len(told["layers"]) == 16
    layer = next(each for each in told["layers"] if each["name"] == "model.layers.0.mlp.up_proj")
    assert (layer["weights"], layer["parameters"], layer["bytes_before"]) == ("int4/g16/sym/f16", 2048, 8192)
    assert layer["bytes_after"] == 2048 // 2 + 2048 // 16 * 2
    assert told["file_after"] == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert len(quantized_layers(fewbit.load(tmp_path / "out"))) == 16


@pytest.mark.parametrize("data", ["texts", "texts/one.txt"])
def test_windows_of_text_are_stated(source: Path, tmp_path: Path, data: str) -> None:
    more = ("--data", tmp_path / data, "--windows", 3, "--length", 10)
    code, told = quantize(source, "-r", "W8A8", "-o", tmp_path / "out", *more)
    assert code == 0, told
    assert told["data"] == f"3 windows of 10 tokens of {Path(data).name}"
    assert f"calibrated on {told['data']}" in told["notes"]
    assert all("static" in layer["input"] or "uint8" in layer["input"] for layer in told["layers"][1:])


def test_a_length_of_512_and_64_windows_are_the_default(source: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("abcdefgh " * 5000)
    options = DataOptions(tmp_path / "long.txt", None, 16, None, None, None, None)
    windows, told = calibration_windows(source, options)
    assert told == "64 windows of 512 tokens of long.txt"
    assert windows is not None
    assert {tuple(window["input_ids"].shape) for window in windows} == {(1, 512)}


def test_a_picture_is_what_a_person_sees(source: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["quantize", str(source), "-r", "W8A16", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert "16 layers quantized, 0 left in float" in done.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--memory", "lots"], "--memory takes a size"),
        (["--memory", "0"], "--memory takes a size"),
        (["--dtype", "int3"], "--dtype takes"),
        (["--recipe", "W8A8"], "needs calibration data"),
        (["--algorithm", "magic"], "no algorithm is called 'magic'"),
        (["--data", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_wrong_arguments_are_one_sentence(source: Path, tmp_path: Path, more: list[str], said: str) -> None:
    code, told = quantize(source, "-o", tmp_path / "out", *(["-r", "W4A16"] if "--recipe" not in more else []), *more)
    assert code == 2
    assert said in told["error"]
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("mine")
    for more in ([], ["--overwrite"]):
        code, told = quantize(source, "-r", "W8A16", "-o", tmp_path / "out", *more)
        assert code == 2, told
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("break_it", [lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.unlink()])
def test_a_broken_folder_is_one_sentence(source: Path, tmp_path: Path, break_it: Callable[[Path], object]) -> None:
    break_it(source / "model.safetensors")
    code, told = quantize(source, "-r", "W8A16", "-o", tmp_path / "out")
    assert code == 2
    assert "safetensors" in told["error"]


def test_a_tokenizer_may_lie_elsewhere_and_goes_along_with_a_model_in_memory(source: Path, tmp_path: Path) -> None:
    more = ("--data", tmp_path / "texts", "--windows", 2, "--length", 10)
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    code, told = quantize(bare, "-r", "W4A16-g16", "-o", tmp_path / "out", *more)
    assert code != 0
    assert "with --tokenizer" in str(told)
    code, told = quantize(bare, "-r", "W4A16-g16", "-o", tmp_path / "out", *more, "--tokenizer", source)
    assert code == 0, told
    code, told = quantize(source, "-r", "W4A16-g16", "--algorithm", "awq", "-o", tmp_path / "awq", *more)
    assert code == 0, told
    assert {"config.json", "tokenizer.json"} <= {path.name for path in (tmp_path / "awq").iterdir()}
    assert len(quantized_layers(fewbit.load(tmp_path / "awq"))) == 16


def test_the_source_is_never_the_output(source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source)
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    for output in (source, tmp_path / "link", source.parent):
        done = CliRunner().invoke(app, ["quantize", str(source), "-r", "W8A16", "-o", str(output), "--overwrite"])
        assert done.exit_code == 2
        assert "source" in done.stderr
        assert "choose another output" in done.stderr
        with pytest.raises(fewbit.FewbitError, match="choose another output"):
            fewbit.quantize(str(source), "W8A16", output=output)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_options_that_do_nothing_for_a_folder_are_told(source: Path, tmp_path: Path) -> None:
    data = ("--data", tmp_path / "texts", "--windows", 2, "--length", 10)
    for more, said in [
        (("--image-size", 8), "--image-size does nothing without --data"),
        (("--tokenizer", source), "--tokenizer does nothing without --data"),
        ((*data, "--mean", "0.5"), "--mean does nothing for text"),
        ((*data, "--batch-size", 2), "--batch-size does nothing for a folder that is streamed"),
        ((*data, "--algorithm", "awq", "--memory", "1GiB"), "--memory does nothing for a model that is not streamed"),
    ]:
        code, told = quantize(source, "-r", "W4A16-g16", "-o", tmp_path / "out", *more)
        assert code == 2, told
        assert said in told["error"]
        assert not (tmp_path / "out").exists()


def test_data_that_is_not_used_is_told(source: Path, tmp_path: Path) -> None:
    data = ("--data", tmp_path / "texts", "--windows", 2, "--length", 10)
    code, told = quantize(source, "-r", "W8A16", "-o", tmp_path / "out", *data)
    assert code == 0, told
    assert any("the data was not used: rtn rounds weights without it" in note for note in told["notes"])
    assert not any("calibrated on" in note for note in told["notes"])


@pytest.mark.parametrize("algorithm", ["hqq", "gptq", "awq", "rotation+rtn"])
def test_sizes_are_those_of_the_source(source: Path, tmp_path: Path, algorithm: str) -> None:
    folder = tmp_path / "narrow"
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: t if "norm" in name else t.to(torch.bfloat16) for name, t in tensors.items()}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    data = () if algorithm == "hqq" else ("--data", tmp_path / "texts", "--windows", 2, "--length", 10)
    code, told = quantize(folder, "-r", "W4A16-g16", "--algorithm", algorithm, "-o", tmp_path / "out", *data)
    assert code == 0, told
    layer = next(each for each in told["layers"] if each["name"] == "model.layers.0.mlp.up_proj")
    assert layer["bytes_before"] == 4096
    assert told["bytes_before"] == sum(tensor.nbytes for tensor in kept.values())
