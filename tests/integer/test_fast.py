from __future__ import annotations

import pytest
import torch
from integer_cases import KINDS, network, pictures, quantized
from torch import nn

from fewbit.errors import FewbitError
from fewbit.integer.agreement import agreement
from fewbit.integer.fast import Fast
from fewbit.integer.simulate import simulate


@pytest.mark.parametrize("recipe", ["W8A8", "W4A8"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_is_within_one_code_of_integer_arithmetic(kind: type[nn.Module], recipe: str) -> None:
    found = network(kind, recipe)
    rows = agreement(found, Fast(found).codes(pictures()))
    assert len(rows) == sum(node.integer and node.name in found.affine for node in found.nodes)
    assert max(row.largest for row in rows) <= 1
    assert sum(row.different for row in rows) <= 0.002 * sum(row.values for row in rows)


@pytest.mark.parametrize("isa", ["portable", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_without_onednn_the_codes_are_the_same_but_for_ties(
    kind: type[nn.Module], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = network(kind)
    monkeypatch.setenv("FEWBIT_ISA", isa)
    rows = agreement(found, Fast(found).codes(pictures(2)))
    assert max(row.largest for row in rows) <= 1
    assert sum(row.different for row in rows) <= 0.002 * sum(row.values for row in rows)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_simulation_and_near_the_model(kind: type[nn.Module]) -> None:
    found, x = network(kind), pictures()
    (result,) = Fast(found)(x)
    (wanted,) = simulate(found.nodes, {found.inputs[0]: x}, found.constants, found.affine, found.outputs)
    with torch.no_grad():
        model = quantized(kind)(x)
    spread = float(wanted.std())
    assert float((result - wanted).abs().mean()) < 0.02 * spread
    assert float((result - model).abs().mean()) < 0.1 * spread


def test_any_batch_size_and_any_memory_order() -> None:
    found, x = network(KINDS[0]), pictures(5)
    fast = Fast(found)
    (all_together,) = fast(x)
    one_by_one = torch.cat([fast(picture[None].contiguous(memory_format=torch.channels_last))[0] for picture in x])
    assert torch.equal(all_together, one_by_one)


def test_a_run_is_repeatable_and_changes_nothing() -> None:
    found, x = network(KINDS[1]), pictures()
    fast, before = Fast(found), pictures()
    first = fast(x)[0].clone()
    assert torch.equal(first, fast(x)[0])
    assert torch.equal(x, before)


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(FewbitError, match="1 inputs, not 2"):
        Fast(network(KINDS[0]))(pictures(), pictures())
