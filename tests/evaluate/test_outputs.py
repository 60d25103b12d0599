"""Every container that models return flattens to named floating tensors."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from fewbit.evaluate.outputs import floating_outputs, is_classification


@dataclass
class Result:
    logits: torch.Tensor
    extra: tuple[torch.Tensor, ...] | None = None


Pair = namedtuple("Pair", ["mean", "spread"])
A, B = torch.ones(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (A, ["output"]),
        ((A, B), ["0", "1"]),
        ([A], ["0"]),
        ({"a": A, "b": {"c": B}}, ["a", "b.c"]),
        (OrderedDict(x=A), ["x"]),
        (Pair(A, B), ["mean", "spread"]),
        (Result(A, (B, A)), ["logits", "extra.0", "extra.1"]),
        (Result(A), ["logits"]),
        ({"ids": torch.tensor([1]), "mask": None, "name": "x", "deep": [(A, 3)]}, ["deep.0.0"]),
        (None, []),
        (torch.tensor([1, 2]), []),
    ],
)
def test_names(output: object, names: list[str]) -> None:
    assert list(floating_outputs(output)) == names


def test_tensors_are_the_ones_that_came_in() -> None:
    assert floating_outputs({"a": (A, B)})["a.1"] is B


def test_hugging_face_outputs() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    result = outputs.BaseModelOutputWithPooling(last_hidden_state=A, pooler_output=B, hidden_states=(A, A))
    assert list(floating_outputs(result)) == [
        "last_hidden_state",
        "pooler_output",
        "hidden_states.0",
        "hidden_states.1",
    ]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("output", (4, 10), True),
        ("output", (4, 1), False),
        ("output", (4, 10, 3), False),
        ("output", (4,), False),
        ("logits", (4, 7, 100), True),
        ("logits", (4, 10), True),
        ("decoder.logits", (4, 10), True),
        ("logits", (10,), False),
        ("pooler_output", (4, 10), False),
        ("0", (4, 10), False),
    ],
)
def test_which_outputs_hold_class_scores(name: str, shape: tuple[int, ...], expected: bool) -> None:
    assert is_classification(name, torch.zeros(shape)) is expected
