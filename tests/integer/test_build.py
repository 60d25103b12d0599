from __future__ import annotations

import pytest
import torch
from integer_cases import KINDS, Mixed, Residual, network, pictures, quantized, seeded
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.integer import integer_network
from fewbit.nn import info


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_between_layers_is_an_integer(kind: type[nn.Module]) -> None:
    found = network(kind)
    inside = [node for node in found.nodes if node.op not in ("float", "shape")]
    assert all(node.integer for node in inside)
    lists = {node.name for node in inside if node.detail.get("list")}
    assert {name for node in inside for name in node.inputs[:1]} <= set(found.affine) | lists


def test_what_stays_in_float_is_told_and_the_head_is_not_rounded() -> None:
    found = network(Mixed)
    assert any("softmax" in note for note in found.notes)
    assert found.node("linear").name not in found.affine


def test_activations_and_batch_norm_leave_no_node() -> None:
    assert [node.op for node in network(Residual).nodes if node.op != "shape"] == [
        "conv", "conv", "conv", "add", "conv", "add", "avg_pool", "linear",
    ]  # fmt: skip


def test_the_model_remembers_the_ranges_between_its_layers() -> None:
    made = info(quantized(Residual))
    assert made is not None
    assert len(made.between) == 3  # the second term of each sum, and what the mean is over
    remembered = integer_network(quantized(Residual), [pictures(2) * 100])
    assert remembered.affine == network(Residual).affine


def test_ranges_come_through_a_file(tmp_path) -> None:
    fewbit.save(quantized(Residual), tmp_path / "model")
    loaded = fewbit.load(tmp_path / "model")
    again = integer_network(loaded, [pictures(2)])
    assert list(again.affine.values()) == list(network(Residual).affine.values())


def test_ranges_are_measured_where_none_are_remembered() -> None:
    model = seeded(Residual())
    made = fewbit.quantize(model, "W8A8", [pictures()])
    info(made).between.clear()  # type: ignore[union-attr]
    found = integer_network(made, [pictures()])
    assert any("measured on the example" in note for note in found.notes)
    wanted = network(Residual).affine  # from the float network, where these are from the quantized one
    assert all(abs(a.scale - wanted[name].scale) < 0.02 * a.scale for name, a in found.affine.items())


@pytest.mark.parametrize("recipe", ["W8A16", "W8A8-dynamic"])
def test_a_model_without_static_layers_is_refused(recipe: str) -> None:
    model = fewbit.quantize(seeded(Residual()), recipe)
    with pytest.raises(FewbitError, match="static"):
        integer_network(model, [pictures()])


def test_a_forward_that_export_cannot_follow_is_refused() -> None:
    class Asks(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    made = fewbit.quantize(seeded(Asks()), "W8A8", [pictures()])
    with pytest.raises(FewbitError, match=r"torch\.export cannot follow"):
        integer_network(made, [pictures()])
    assert any("stay in float" in note for note in info(made).notes)  # type: ignore[union-attr]
