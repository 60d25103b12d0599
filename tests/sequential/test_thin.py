"""Data that is too little is told, and enough is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import inputs, tiny, tiny_folder

import fewbit
from fewbit.recipe import as_recipe
from fewbit.sequential.folder import FolderJob, quantize_folder
from fewbit.sequential.solve import Settings
from fewbit.sequential.windows import windows


def notes(count: int, length: int, algorithm: str, scheme: str = "W4A16-g16") -> list[str]:
    data = [torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(i)) for i in range(count)]
    about = fewbit.nn.info(fewbit.quantize(tiny("llama").eval(), scheme, data, algorithm=algorithm))
    assert about is not None
    return [note for note in about.notes if "so few" in note or "keeps" in note]


def test_few_positions_are_told_with_the_widest_layer() -> None:
    (note,) = notes(3, 25, "gptq")
    assert note.startswith("the calibration data has 75 positions, less than two for each of the 64 inputs")
    assert "inputs of model.layers.0.mlp.down_proj and 1 more layer: what gptq" in note
    (note,) = notes(1, 1, "gptq")
    assert note.startswith("the calibration data has 1 position, less than two for each of the 64 inputs")
    assert "and 13 more layers: what gptq fits to so few may not hold" in note


@pytest.mark.parametrize(("count", "length", "algorithm"), [(6, 25, "gptq"), (1, 4, "rtn"), (9, 16, "best")])
def test_enough_data_and_none_needed_are_not(count: int, length: int, algorithm: str) -> None:
    assert not notes(count, length, algorithm)


def test_best_tells_that_it_judges_on_what_was_fitted() -> None:
    (note,) = notes(7, 40, "best")
    assert note.startswith("best keeps every eighth window to judge its candidates; of 7 windows it keeps none")
    assert not notes(8, 40, "best")


@pytest.mark.parametrize("family", ["llama", "whisper"])
def test_streamed_folders_tell_it_too(tmp_path: Path, family: str) -> None:
    source = tiny_folder(tmp_path / "model", family)
    data = windows([inputs(family, batch=1)])
    result = quantize_folder(FolderJob(source, tmp_path / "out", Settings(as_recipe("W4A16-g16"), "gptq"), data))
    thin = [note for note in result.info.notes if "what gptq fits to so few" in note]
    assert len(thin) == (1 if family == "llama" else 2)  # one a stack
    loaded = fewbit.nn.info(fewbit.load(tmp_path / "out"))
    assert loaded is not None
    assert set(thin) <= set(loaded.notes)
