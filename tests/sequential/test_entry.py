"""A folder from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import inputs, tiny, tiny_folder

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import quantized_layers
from fewbit.sequential.entry import calibration_windows, is_folder

TEXT = "the quick brown fox jumps over the lazy dog. " * 30


def test_a_folder_becomes_a_folder(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    made = fewbit.quantize(source, "W8A16", output=tmp_path / "out")
    assert made == tmp_path / "out"
    assert len(quantized_layers(fewbit.load(made))) == 16


def test_texts_calibrate_it(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama", max_position_embeddings=32)
    made = fewbit.quantize(str(source), "W4A16-g16", [TEXT, TEXT], output=tmp_path / "out")
    info = fewbit.nn.info(fewbit.load(made))
    assert info is not None
    assert info.algorithm == "gptq"


def test_every_kind_of_data_becomes_windows(tmp_path: Path) -> None:
    source, model = (
        tiny_folder(tmp_path / "model", "llama", max_position_embeddings=32),
        tiny("llama", max_position_embeddings=32),
    )
    (tmp_path / "text.txt").write_text(TEXT)
    for data in ([TEXT], tmp_path / "text.txt", str(tmp_path / "text.txt")):
        found = calibration_windows(source, model, data)
        assert {tuple(window["input_ids"].shape) for window in found} == {(1, 32)}
    assert len(calibration_windows(source, model, [inputs("llama"), torch.ones(3, 4).long()])) == 5


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    assert is_folder(source)
    assert not is_folder(tmp_path)
    assert not is_folder(tiny("llama"))
    with pytest.raises(FewbitError, match="name it with output="):
        fewbit.quantize(source, "W8A16")
    with pytest.raises(FewbitError, match="changes the float model as a whole"):
        fewbit.quantize(source, "W8A16", [TEXT], algorithm="rotation+rtn", output=tmp_path / "out")
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(FewbitError, match="holds no tokenizer"):
        fewbit.quantize(source, "W4A16-g16", [TEXT], output=tmp_path / "out")
