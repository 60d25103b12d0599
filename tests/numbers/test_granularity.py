"""Blocks against plain NumPy indexing: each block holds exactly the values that share its scale."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken, parse

SHAPES = [(7,), (1,), (3, 5), (4, 1), (2, 3, 4), (2, 3, 4, 5), (1, 6, 1, 2)]


def cases() -> list[tuple[tuple[int, ...], Granularity]]:
    found: list[tuple[tuple[int, ...], Granularity]] = []
    for shape in SHAPES:
        found += [(shape, PerTensor()), (shape, PerToken())]
        found += [(shape, PerChannel(axis)) for axis in range(len(shape))]
        found += [(shape, PerGroup(size)) for size in (1, 2, 3, 4, 8)]
    return found


def owner(index: tuple[int, ...], grain: Granularity) -> tuple[int, ...]:
    """The index of the scale that an element uses, said once more and differently."""
    match grain:
        case PerTensor():
            return ()
        case PerChannel(axis=axis):
            return (index[axis],)
        case PerGroup(size=size):
            return (*index[:-1], index[-1] // size)
        case PerToken():
            return index[:-1]


def numbered(shape: tuple[int, ...]) -> Tensor:
    """1, 2, 3, …: no two values alike, none of them the padding."""
    return torch.arange(1, math.prod(shape) + 1, dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize(("shape", "grain"), cases(), ids=str)
def test_a_block_holds_the_values_of_its_scale(shape: tuple[int, ...], grain: Granularity) -> None:
    x = numbered(shape)
    scale_shape = grain.scale_shape(shape)
    blocks = grain.to_blocks(x)
    want: dict[tuple[int, ...], list[float]] = {i: [] for i in np.ndindex(*scale_shape)}
    for index in np.ndindex(*shape):
        want[owner(index, grain)].append(float(x[index]))
    assert blocks.shape[0] == len(want)
    for row, values in zip(blocks, want.values(), strict=True):  # rows are in C order of the scale
        assert [v for v in row.tolist() if v] == values
        assert not row[len(values) :].any()


@pytest.mark.parametrize(("shape", "grain"), cases(), ids=str)
def test_from_blocks_is_the_inverse(shape: tuple[int, ...], grain: Granularity) -> None:
    x = numbered(shape)
    assert torch.equal(grain.from_blocks(grain.to_blocks(x), shape), x)


@pytest.mark.parametrize(("shape", "grain"), cases(), ids=str)
def test_expand_puts_each_scale_on_its_values(shape: tuple[int, ...], grain: Granularity) -> None:
    x, scale_shape = numbered(shape), grain.scale_shape(shape)
    scale = torch.arange(1, math.prod(scale_shape) + 1, dtype=torch.float32).reshape(scale_shape)
    view = grain.blocked(x)
    product = grain.unblocked(view * grain.expand(scale, len(shape)), shape)
    assert tuple(product.shape) == grain.padded_shape(shape)
    for index in np.ndindex(*shape):
        assert product[index] == x[index] * scale[owner(index, grain)]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 9))
def test_groups_pad_the_last_axis_only(shape: list[int], size: int) -> None:
    grain = PerGroup(size)
    padded = grain.padded_shape(tuple(shape))
    assert padded[:-1] == tuple(shape[:-1])
    assert padded[-1] % size == 0
    assert 0 <= padded[-1] - shape[-1] < size
    assert grain.scale_shape(tuple(shape)) == (*shape[:-1], padded[-1] // size)


def test_blocks_of_a_transposed_view() -> None:
    x = numbered((4, 6)).T
    for grain in (PerTensor(), PerChannel(1), PerGroup(3), PerToken()):
        assert torch.equal(grain.to_blocks(x), grain.to_blocks(x.contiguous()))


def test_too_few_dimensions_are_named() -> None:
    with pytest.raises(FewbitError, match="axis 2"):
        PerChannel(2).to_blocks(torch.zeros(3, 3))
    for grain in (PerGroup(4), PerToken()):
        with pytest.raises(FewbitError, match=f"{grain} needs at least one dimension"):
            grain.scale_shape(())


@pytest.mark.parametrize("size", [0, -1])
def test_a_group_has_a_size(size: int) -> None:
    with pytest.raises(FewbitError, match="at least 1"):
        PerGroup(size)


def test_a_negative_axis_is_refused() -> None:
    with pytest.raises(FewbitError, match="axis"):
        PerChannel(-1)


@pytest.mark.parametrize("text", ["", "row", "g", "g1.5", "channel12", "channel-1", "Tensor", "tensor ", "gg8"])
def test_what_is_no_granularity_is_refused(text: str) -> None:
    with pytest.raises(FewbitError, match="no granularity"):
        parse(text)


def test_names_round_trip() -> None:
    every = itertools.chain([PerTensor(), PerToken()], map(PerChannel, range(10)), map(PerGroup, (1, 32, 128, 10**6)))
    for grain in every:
        assert parse(str(grain)) == grain
