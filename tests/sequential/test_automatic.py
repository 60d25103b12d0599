"""What a user gets who names no algorithm."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny

import fewbit
from fewbit.errors import FewbitError
from fewbit.nn import info
from fewbit.recipe import Recipe, Rule
from fewbit.sequential.automatic import check_name, resolve, scalable, tunes


@pytest.mark.parametrize(
    ("recipe", "blocks", "data", "wanted"),
    [
        (Recipe("W4A16-g128"), True, True, "gptq"),
        (Recipe("W4A16-g128"), True, False, "hqq"),
        (Recipe("W3A16-g128-asym"), True, True, "gptq"),
        (Recipe("W8A16"), True, True, "rtn"),
        (Recipe("W8A8-dynamic"), True, False, "rtn"),
        (Recipe("W4A16-g128"), False, True, "rtn"),
        (Recipe("W4A16-g128", weight_calibrator="minmax"), True, True, "rtn"),
        (Recipe("W8A16", rules=(Rule("*mlp*", weights="int4/g32/sym"),)), True, True, "gptq"),
        (Recipe("W4A16", weights="nf4/g64/sym"), True, True, "rtn"),
    ],
)
def test_few_bits_of_language_models_get_the_good_algorithms(recipe, blocks, data, wanted) -> None:
    assert resolve("auto", recipe, blocks, data) == wanted
    assert resolve("rtn", recipe, blocks, data) == "rtn"


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        (Recipe("W8A8-dynamic"), "smoothquant"),
        (Recipe("W8A8-dynamic", rules=(Rule("*head*", skip=True),)), "smoothquant"),
        (Recipe("W4A8-dynamic"), "gptq"),
        (Recipe("W8A8"), "rtn"),
        (Recipe("W8A16"), "rtn"),
        (Recipe("W8A8-dynamic", weight_calibrator="mse"), "rtn"),
        (Recipe("W8A8-dynamic", rules=(Rule("*mlp*", scheme="W8A16"),)), "rtn"),
    ],
)
def test_dynamic_integers_are_smoothed_where_scales_can_move(recipe, wanted) -> None:
    assert resolve("auto", recipe, True, True, scales=True) == wanted
    assert resolve("auto", recipe, True, False, scales=True) != "smoothquant"
    assert resolve("auto", recipe, True, True, scales=False) != "smoothquant"


def test_scales_move_in_known_families_that_fit() -> None:
    assert scalable(tiny("llama"))
    assert scalable(tiny("llama"), streamed=True)
    assert not scalable(torch.nn.Linear(4, 4))


def test_wrong_names_are_told() -> None:
    check_name("auto")
    check_name("smoothquant+gptq")
    with pytest.raises(FewbitError, match="nonsense"):
        resolve("nonsense", Recipe("W8A8"), True, True)


def test_only_best_tunes() -> None:
    model = tiny("llama")
    assert tunes("best", model)
    assert not tunes("gptq", model)
    assert not tunes("auto", model)


def test_the_default_and_best_run_in_memory() -> None:
    model = tiny("llama").eval()
    data = [torch.randint(0, 64, (1, 24), generator=torch.Generator().manual_seed(i)) for i in range(9)]
    assert info(fewbit.quantize(model, "W4A16-g8", data)).algorithm == "gptq"
    assert info(fewbit.quantize(model, "W4A16-g8")).algorithm == "hqq"
    assert info(fewbit.quantize(model, "W8A8-dynamic", data)).algorithm == "smoothquant"
    tuned = info(fewbit.quantize(model, "W2A16-g8", data, algorithm="best"))
    assert any("tun" in note for note in tuned.notes)
