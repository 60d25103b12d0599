"""Second moments of what a layer reads, at sampled positions: in the float network, in the quantized one, and across.

For a layer ``y = W x`` of the float network and the input x̂ that the quantized network really has, the weight that
gives the float output best is ``W C Ĝ⁻¹`` with ``Ĝ = E[x̂ x̂ᵀ]`` and ``C = E[x x̂ᵀ]``, both about their means, since
the bias takes up the means (AdaRound, arXiv 2004.10568, equation 25, asks for the same output).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.integer.ir import Node
from fewbit.kernels import reference
from fewbit.kernels.products import Geometry


@dataclass(frozen=True)
class Moments:
    """Sums over sampled rows, for each channel group.

    Attributes:
        gram: float32 ``[groups, K, K]``, ``E[x̂ x̂ᵀ] − E[x̂] E[x̂]ᵀ``.
        cross: float32 ``[groups, K, K]``, ``E[x x̂ᵀ] − E[x] E[x̂]ᵀ``.
        count: How many rows were seen.
    """

    gram: Tensor
    cross: Tensor
    count: int


def moments(node: Node, floats: Sequence[Tensor], quantized: Sequence[Tensor], rows: int, seed: int = 0) -> Moments:
    """Sample the inputs of a layer.

    Args:
        node: A convolution or a linear layer.
        floats: Batches of its input in the float network.
        quantized: The same batches in the quantized one, dequantized.
        rows: About how many rows to take in all.
        seed: Of the positions.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = sum(len(batch) for batch in floats)
    each = -(-rows // samples)
    gram = cross = mean_x = mean_q = torch.zeros(())
    count = 0
    for x, q in zip(floats, quantized):
        at = _positions(node, x, each, generator)
        a, b = sampled_rows(node, x, at), sampled_rows(node, q, at)
        gram = gram + b.transpose(1, 2) @ b
        cross = cross + a.transpose(1, 2) @ b
        mean_x, mean_q = mean_x + a.sum(1), mean_q + b.sum(1)
        count += a.shape[1]
    mean_x, mean_q = mean_x / count, mean_q / count
    outer_q, outer_x = mean_q[:, :, None] * mean_q[:, None, :], mean_x[:, :, None] * mean_q[:, None, :]
    return Moments(gram / count - outer_q, cross / count - outer_x, count)


def transferred(weight: Tensor, found: Moments, damping: float) -> Tensor:
    """``W C Ĝ⁻¹`` ``[groups, out, K]``, drawn towards W where the data says little.

    Args:
        weight: float32 ``[groups, out, K]``.
        found: Of the layer.
        damping: Added to the diagonal, in units of its mean.
    """
    eye = torch.eye(weight.shape[-1])
    ridge = damping * found.gram.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=1e-12)[:, None, None] * eye
    wanted = weight @ (found.cross + ridge)
    solved: Tensor = torch.linalg.solve(found.gram + ridge, wanted.transpose(1, 2)).transpose(1, 2)
    return torch.where(torch.isfinite(solved).flatten(1).all(1)[:, None, None], solved, weight)


def _positions(node: Node, x: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """Which outputs to look at: flat indices over the output's spatial axes (or the rows of a linear layer)."""
    walk = node.geometry
    if walk is None:
        return torch.arange(0)
    total = 1
    for size in _out(x, walk):
        total *= size
    if total <= each:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:each].sort().values


def _out(x: Tensor, walk: Geometry) -> list[int]:
    sizes = zip(x.shape[2:], walk.kernel, walk.stride, walk.padding, walk.dilation)
    return [(size + a + b - d * (k - 1) - 1) // s + 1 for size, k, s, (a, b), d in sizes]


def sampled_rows(node: Node, x: Tensor, at: Tensor) -> Tensor:
    """The patches under chosen outputs: ``[groups, rows, K]``."""
    walk = node.geometry
    if walk is None:
        return x.reshape(1, -1, x.shape[-1])
    sizes = _out(x, walk)
    padded = reference._pad(x, walk.padding, 0)
    places: list[Tensor] = []
    left = at
    for size in reversed(sizes):
        places.insert(0, left % size)
        left = left // size
    columns = []
    for offset in torch.cartesian_prod(*[torch.arange(k) for k in walk.kernel]).reshape(-1, len(sizes)).tolist():
        index = [p * s + o * d for p, s, o, d in zip(places, walk.stride, offset, walk.dilation)]
        columns.append(padded[(slice(None), slice(None), *index)])  # [N, C, rows]
    patches = torch.stack(columns, dim=2)  # [N, C, kernel, rows]
    groups = walk.groups
    by_group = patches.reshape(x.shape[0], groups, -1, at.numel())
    return by_group.permute(1, 0, 3, 2).reshape(groups, -1, by_group.shape[2])
