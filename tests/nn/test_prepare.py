"""Names of algorithms with several parts."""

from __future__ import annotations

import pytest
import torch
from tiny_models import inputs, output, tiny

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import info
from fewbit.nn.prepare import rotate_first, scale, scales_wanted, split_name


@pytest.mark.parametrize(
    ("name", "steps", "rounding"),
    [
        ("rtn", [], "rtn"),
        ("awq", ["awq"], "awq"),
        ("smoothquant", ["smoothquant"], "smoothquant"),
        ("rotation", ["rotation"], "rtn"),
        ("rotation+rtn", ["rotation"], "rtn"),
        ("rotation+smoothquant+rtn", ["rotation", "smoothquant"], "rtn"),
        ("rotation+awq", ["rotation", "awq"], "awq"),
    ],
)
def test_the_last_part_rounds(name: str, steps: list[str], rounding: str) -> None:
    assert split_name(name) == (steps, rounding)
    assert scales_wanted(steps) == bool({"awq", "smoothquant"} & set(steps))


@pytest.mark.parametrize("name", ["nothing", "rtn+rtn", "awq+nothing", "awq+awq", "awq+rotation", "+rtn", "awq+", ""])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(FewbitError):
        split_name(name)


def test_steps_are_told_and_the_result_is_near() -> None:
    model = tiny("llama")
    batches = [inputs("llama", seed) for seed in range(3)]
    q = fewbit.quantize(model, "W8A8-dynamic", batches, algorithm="rotation+smoothquant")
    made = info(q)
    assert made is not None
    assert made.algorithm == "rotation+smoothquant"
    assert "residual stream of 32 channels was rotated" in made.notes[0]
    assert any(note.startswith("smoothquant scaled the inputs of") for note in made.notes)
    expected = output(model, "llama")
    assert (output(q, "llama") - expected).norm() < 0.1 * expected.norm()


def test_nothing_to_do_does_nothing() -> None:
    model = tiny("llama")
    before = [p.clone() for p in model.parameters()]
    assert rotate_first(model, ["awq"]) == []
    assert scale(model, ["rotation"], [], None) == []
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before))
