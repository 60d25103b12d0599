from __future__ import annotations

import torch
import torch.nn.functional as F

from fewbit.integer.ir import Node
from fewbit.integer.moments import Moments, moments, sampled_rows, transferred
from fewbit.kernels.products import Geometry

WALK = Geometry((3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2)


def conv(walk: Geometry = WALK) -> Node:
    return Node("conv", "y", ("x",), geometry=walk)


def test_rows_are_the_patches_that_the_convolution_multiplies() -> None:
    x, weight = torch.randn(2, 4, 6, 7), torch.randn(6, 2, 3, 2)
    padded = F.pad(x, (0, 2, 1, 0))
    wanted = F.conv2d(padded, weight, None, WALK.stride, 0, WALK.dilation, WALK.groups)
    total = wanted[0, 0].numel()
    at = torch.tensor([0, 3, total - 1])
    rows = sampled_rows(conv(), x, at)
    product = torch.einsum("grk,gok->gro", rows, weight.reshape(2, 3, -1))
    by_hand = wanted.flatten(2)[:, :, at].reshape(2, 2, 3, 3).permute(1, 0, 3, 2).reshape(2, 6, 3)
    assert torch.allclose(product, by_hand, atol=1e-4)


def test_moments_are_those_of_all_rows_where_all_are_taken() -> None:
    x = [torch.randn(2, 4, 5, 5) + 1 for _ in range(2)]
    q = [value + 0.1 * torch.randn_like(value) for value in x]
    walk = Geometry((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    found = moments(conv(walk), x, q, rows=10_000)
    a, b = (torch.cat(v).movedim(1, -1).reshape(-1, 4) for v in (x, q))
    assert found.count == 100
    assert torch.allclose(found.gram[0], torch.cov(b.T, correction=0), atol=1e-4)
    assert torch.allclose(found.cross[0], (a - a.mean(0)).T @ (b - b.mean(0)) / 100, atol=1e-4)


def test_a_moved_weight_gives_the_float_output_on_the_changed_input() -> None:
    x = torch.randn(500, 6)
    mix = torch.eye(6) + 0.3 * torch.randn(6, 6)
    q = x @ mix.T
    node, weight = Node("linear", "y", ("x",)), torch.randn(1, 3, 6)
    moved = transferred(weight, moments(node, [x], [q], rows=1), damping=1e-6)
    assert torch.allclose(moved[0] @ mix, weight[0], atol=1e-2)


def test_without_a_change_or_without_data_the_weight_stays() -> None:
    x, weight = torch.randn(500, 6), torch.randn(1, 3, 6)
    node = Node("linear", "y", ("x",))
    assert torch.allclose(transferred(weight, moments(node, [x], [x], rows=1), 0.01), weight, atol=1e-4)
    nothing = Moments(torch.zeros(1, 6, 6), torch.zeros(1, 6, 6), 1)
    assert torch.allclose(transferred(weight, nothing, 0.01), weight, atol=1e-4)
