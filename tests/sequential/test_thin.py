"""Data that is too little is told, and enough is not."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny

import fewbit


def notes(count: int, length: int, algorithm: str, scheme: str = "W4A16-g16") -> list[str]:
    data = [torch.randint(0, 64, (1, length), generator=torch.Generator().manual_seed(i)) for i in range(count)]
    about = fewbit.nn.info(fewbit.quantize(tiny("llama").eval(), scheme, data, algorithm=algorithm))
    assert about is not None
    return [note for note in about.notes if "may fit" in note or "keeps" in note]


def test_few_positions_are_told_with_the_widest_layer() -> None:
    (note,) = notes(3, 25, "gptq")
    assert note.startswith("the calibration data has 75 positions, less than two for each of the 64 inputs")
    assert "inputs of model.layers.0.mlp.down_proj and 1 more layer: gptq" in note
    (note,) = notes(1, 1, "gptq")
    assert note.startswith("the calibration data has 1 position, less than two for each of the 64 inputs")
    assert "and 13 more layers: gptq may fit them by chance" in note


@pytest.mark.parametrize(("count", "length", "algorithm"), [(6, 25, "gptq"), (1, 4, "rtn"), (9, 16, "best")])
def test_enough_data_and_none_needed_are_not(count: int, length: int, algorithm: str) -> None:
    assert not notes(count, length, algorithm)


def test_best_tells_that_it_judges_on_what_was_fitted() -> None:
    (note,) = notes(7, 40, "best")
    assert note.startswith("best keeps every eighth window to judge its candidates; of 7 windows it keeps none")
    assert not notes(8, 40, "best")
