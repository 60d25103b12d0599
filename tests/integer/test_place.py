from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from integer_cases import Mixed, network, pictures, seeded
from torch import Tensor, nn

import fewbit
from fewbit.integer import integer_network
from fewbit.integer.ir import Affine
from fewbit.integer.place import affine_of, covering

AFFINES = st.builds(
    lambda scale, zero: Affine(scale, zero, 0, 255), st.floats(2.0**-10, 8.0, width=32), st.integers(0, 255)
)


def test_operations_that_move_values_share_their_quantizer() -> None:
    found = network(Mixed)
    for node in found.nodes:
        names = {node.name, node.inputs[0]}
        if node.integer and node.op in ("max_pool", "view", "pad", "resize") and names <= set(found.affine):
            assert found.affine[node.name] == found.affine[node.inputs[0]]


def test_what_is_only_joined_is_made_in_the_scale_of_the_result() -> None:
    found = network(Mixed)
    (joined,) = [node for node in found.nodes if node.op == "concat"]
    assert {found.affine[name] for name in joined.inputs} == {found.affine[joined.name]}


def test_a_tensor_with_another_reader_keeps_its_own_scale_in_a_concatenation() -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            first = F.relu(self.a(x))
            return self.c(torch.cat([first, 30 * self.b(first)], dim=1))

    found = integer_network(fewbit.quantize(seeded(Dense()), "W8A8", [pictures()]), [pictures()])
    (joined,) = [node for node in found.nodes if node.op == "concat"]
    first, second = (found.affine[name] for name in joined.inputs)
    assert first != found.affine[joined.name]
    assert second == found.affine[joined.name]


def test_layers_that_read_one_tensor_at_two_stages_share_the_wider_range() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(F.max_pool2d(x, 2)), self.c(F.max_pool2d(-x, 2)), self.b(F.max_pool2d(x, 4))  # type: ignore[return-value]

    found = integer_network(fewbit.quantize(seeded(Pooled()), "W8A8", [pictures()], calibrator="minmax"), [pictures()])
    pools = [node for node in found.nodes if node.op == "max_pool"]
    assert found.affine[pools[0].name] == found.affine[pools[0].inputs[0]] == found.affine[pools[2].name]


@given(st.lists(AFFINES, min_size=1, max_size=4))
def test_covering_holds_every_range_within_a_step(asked: list[Affine]) -> None:
    chosen = covering(asked)
    for affine in asked:
        low, high = affine.bounds
        assert chosen.bounds[0] <= low + chosen.scale
        assert chosen.bounds[1] >= high - chosen.scale


def test_a_single_wish_is_kept_to_the_bit() -> None:
    one = Affine(0.1, 7, 0, 255)
    assert covering([one, one]) is one


@pytest.mark.parametrize(("like", "zero"), [(Affine(1.0, 0, -128, 127), 0), (Affine(1.0, 3, -128, 127), -60)])
def test_signed_codes_around_zero_stay_so(like: Affine, zero: int) -> None:
    made = affine_of(-4.0, 11.0, like)
    assert (made.qmin, made.qmax) == (-128, 127)
    assert (made.zero_point == 0) == (like.zero_point == 0)
    assert made.zero_point == zero
