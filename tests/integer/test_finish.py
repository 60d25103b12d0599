from __future__ import annotations

import pytest
import torch
from integer_cases import KINDS, Residual, pictures, seeded
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.integer import integer_network
from fewbit.integer.finish import is_network
from fewbit.integer.simulate import simulate
from fewbit.nn import info
from fewbit.recipe import LayerPlan, Scheme


def smooth(count: int, seed: int) -> Tensor:
    """Pictures whose neighbours are alike, as in photographs."""
    coarse = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=8, mode="bilinear")


def error(algorithm: str) -> float:
    model, data, test = seeded(Residual()), [smooth(32, 1), smooth(16, 2)], smooth(64, 3)
    network = integer_network(fewbit.quantize(model, "W3A8", data, algorithm=algorithm), data)
    with torch.no_grad():
        wanted = model(test)
    (found,) = simulate(network.nodes, {network.inputs[0]: test}, network.constants, network.affine, network.outputs)
    return float((found - wanted).square().mean())


def test_weights_rounded_in_the_networks_order_lose_less() -> None:
    nearest = error("rtn")
    assert error("gptq") < 0.7 * nearest
    assert error("adaround") < 0.7 * nearest


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_done_is_told_and_the_model_agrees_with_its_network(kind: type[nn.Module]) -> None:
    made = fewbit.quantize(seeded(kind()), "W4A8", [pictures()], algorithm="gptq")
    assert any("rounded in the network's order" in note for note in info(made).notes)  # type: ignore[union-attr]
    network, x = integer_network(made, [pictures()]), pictures()
    (found,) = simulate(network.nodes, {network.inputs[0]: x}, network.constants, network.affine, network.outputs)
    with torch.no_grad():
        assert float((made(x) - found).abs().mean()) < 0.1 * float(found.std())


def test_a_layer_that_is_called_twice_keeps_its_rounding_to_nearest() -> None:
    class Twice(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + super().forward(x.flip(-1))

    data = [pictures()]
    made, nearest = (fewbit.quantize(seeded(Twice()), "W4A8", data, algorithm=a) for a in ("gptq", "rtn"))
    assert torch.equal(made.again.weight.packed.codes, nearest.again.weight.packed.codes)  # type: ignore[union-attr]


def test_a_network_that_cannot_be_traced_is_told() -> None:
    class Asks(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(FewbitError, match=r"in their order, but torch\.export cannot follow"):
        fewbit.quantize(seeded(Asks()), "W4A8", [pictures()], algorithm="gptq")


def test_what_is_a_network() -> None:
    static, dynamic, weights = (Scheme.parse(name) for name in ("W8A8", "W8A8-dynamic", "W8A16"))
    assert is_network([LayerPlan("a", "Conv2d", static, "")])
    for kind, scheme in (("Linear", static), ("Conv1D", static), ("Conv2d", dynamic), ("Conv2d", weights)):
        assert not is_network([LayerPlan("a", kind, scheme, "")])
    assert not is_network([LayerPlan("a", "Conv2d", None, "skipped")])
