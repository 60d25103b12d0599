"""Stored keys and values: what comes back is what the affine map says, and memory is what the bits say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.generation.kv_store import QuantizedStates
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec


def expected(x: torch.Tensor, bits: int, block: int, by_channel: bool, group: int) -> torch.Tensor:
    """Token by token or channel by channel, with the public affine functions."""
    whole = by_channel or group == 0 or x.shape[-1] % group
    spec = QSpec.parse(f"uint{bits}/{'token' if whole else f'g{group}'}/asym/f16")
    out = torch.empty_like(x)
    for start in range(0, x.shape[2], block):
        part = x[:, :, start : start + block]
        turned = part.transpose(-1, -2) if by_channel else part
        blocks = turned if whole else turned.unflatten(-1, (-1, group))
        scale, zero = affine.scale_and_zero_point(blocks.amin(-1), blocks.amax(-1), spec)
        values = affine.quantize(turned, spec, scale=scale, zero_point=zero).dequantize()
        out[:, :, start : start + block] = values.transpose(-1, -2) if by_channel else values
    return out


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([8, 16]),
    st.booleans(),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 9),
    st.sampled_from([0, 2, 4]),
    st.integers(0, 2**31),
)
def test_blocks_come_back_as_the_affine_map_says(
    bits: int, block: int, by_channel: bool, blocks: int, batch: int, width: int, group: int, seed: int
) -> None:
    x = torch.randn(batch, 2, blocks * block, width, generator=torch.Generator().manual_seed(seed)) * 5 + 1
    store = QuantizedStates(bits, block, by_channel, group)
    for part in x.split(block, dim=2):
        store.append(part)
    whole = QuantizedStates(bits, block, by_channel, group)
    whole.append(x)
    assert torch.equal(store.read(torch.float32), whole.read(torch.float32))
    assert torch.allclose(store.read(torch.float32), expected(x, bits, block, by_channel, group), atol=1e-5)
    assert store.tokens == blocks * block
    for first in range(blocks):
        assert torch.equal(store.read(torch.float32, first), whole.read(torch.float32)[:, :, first * block :])
    shared = width if group == 0 or width % group else group
    rows = width if by_channel else block * width // shared
    assert store.nbytes == batch * 2 * blocks * (block * width * bits // 8 + 3 * rows)


@pytest.mark.parametrize("by_channel", [True, False])
def test_large_channels_are_why_keys_are_per_channel(by_channel: bool) -> None:
    x = torch.randn(1, 1, 32, 16, generator=torch.Generator().manual_seed(0))
    x[..., 3] += 40
    store = QuantizedStates(4, 32, by_channel)
    store.append(x)
    error = float((store.read(torch.float32) - x).square().mean())
    # Steps of 40/15 have an error of 0.6: of one channel in sixteen, or of all.
    assert (error < 0.2) == by_channel


def test_batches_are_picked_and_repeated_and_blocks_dropped() -> None:
    x = torch.randn(3, 2, 24, 4)
    store = QuantizedStates(8, 8, False)
    store.append(x)
    before = store.read(torch.float32)
    store.drop_first(1)
    assert torch.equal(store.read(torch.float32), before[:, :, 8:])
    store.drop_last(1)
    assert torch.equal(store.read(torch.float32), before[:, :, 8:16])
    store.select(torch.tensor([2, 0]))
    store.repeat(2)
    assert torch.equal(store.read(torch.float32), before[[2, 2, 0, 0], :, 8:16])


def test_an_empty_store_stays_empty() -> None:
    store = QuantizedStates(4, 8, True)
    store.drop_first(1)
    store.select(torch.tensor([0]))
    assert (store.tokens, store.nbytes) == (0, 0)


def test_the_dtype_is_the_readers() -> None:
    store = QuantizedStates(8, 8, False)
    store.append(torch.randn(1, 1, 8, 4, dtype=torch.bfloat16))
    assert store.read(torch.bfloat16).dtype == torch.bfloat16
