"""Attention on products of pairs against torch's in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewbit.kernels import dispatch
from fewbit.kernels.attention import attention

HAS = attention(*(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16) for _ in range(3))) is not None
needs_kernel = pytest.mark.skipif(not HAS, reason="the kernel is not for this processor")


def heads(batch: int, count: int, rows: int, width: int, seed: int) -> Tensor:
    """Strided as models' are: a view of a product's ``[B, T, H · D]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, rows, count * width, generator=generator).bfloat16()
    return x.view(batch, rows, count, width).transpose(1, 2)


def exact(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, causal=False, scale=None) -> Tensor:
    """torch's, in float32 throughout."""
    shared = key.shape[1] != query.shape[1]
    options = {"attn_mask": mask, "is_causal": causal, "scale": scale, "enable_gqa": shared}
    return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)


@needs_kernel
@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 2),
    shared=st.integers(1, 3),
    count=st.integers(1, 2),
    queries=st.integers(1, 90),
    keys=st.integers(1, 600),
    width=st.integers(1, 70),
    value_width=st.integers(1, 70),
    kind=st.sampled_from(["all", "causal", "mask", "window"]),
    seed=st.integers(0, 99),
)
def test_it_is_torchs_to_the_rounding_of_bfloat16(
    batch, shared, count, queries, keys, width, value_width, kind, seed
) -> None:
    query = heads(batch, count * shared, queries, width, seed)
    key, value = heads(batch, count, keys, width, seed + 1), heads(batch, count, keys, value_width, seed + 2)
    mask = None
    if kind == "mask":
        mask = torch.rand(batch, 1, queries, keys, generator=torch.Generator().manual_seed(seed)) < 0.3
    if kind == "window":  # two thirds of the keys are hidden from all queries
        mask = (torch.arange(keys)[None, :] - torch.arange(queries)[:, None] * keys // queries).abs() < keys // 6 + 1
    found = attention(query, key, value, mask, kind == "causal", 0.7)
    wanted = exact(query, key, value, mask, kind == "causal", 0.7)
    assert found is not None
    assert found.dtype == torch.bfloat16
    assert found.shape == wanted.shape
    # Each share, and the result, within half a step of bfloat16.
    bound = 2**-8 * (wanted.abs() + exact(query, key, value.abs(), mask, kind == "causal", 0.7))
    assert bool(((found.float() - wanted).abs() <= bound + 1e-6).all())


@needs_kernel
def test_a_query_that_sees_nothing_gets_zeros_and_nan_stays_nan() -> None:
    query, key, value = (heads(1, 2, 40, 32, seed) for seed in range(3))
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[3] = False
    found = attention(query, key, value, mask)
    assert found is not None
    assert not found[:, :, 3].any()
    query[0, 0, 5, 0] = float("nan")
    found = attention(query, key, value, mask)
    assert found is not None
    assert bool(found[0, 0, 5].isnan().all())
    assert int(found.isnan().sum()) == 32


@needs_kernel
def test_large_scores_do_not_overflow() -> None:
    query, key = heads(1, 1, 8, 64, 0) * 100, heads(1, 1, 300, 64, 1) * 100
    value = heads(1, 1, 300, 16, 2)
    found = attention(query, key, value)
    assert found is not None
    torch.testing.assert_close(found.float(), exact(query, key, value), rtol=2**-7, atol=1e-3)


@needs_kernel
@pytest.mark.parametrize("shape", [(1, 1, 8, 1), (8, 1), (1, 1, 1, 1), (1, 2, 1, 8), (8, 8)])
def test_masks_are_broadcast_as_torch_does(shape: tuple[int, ...]) -> None:
    q = heads(1, 2, 8, 16, 0)
    mask = (torch.arange(torch.Size(shape).numel()).reshape(shape) % 3) != 1
    found = attention(q, q, q, mask)
    assert found is not None
    torch.testing.assert_close(found.float(), exact(q, q, q, mask), rtol=0, atol=0.02)


@needs_kernel
def test_what_torch_refuses_or_has_no_width_is_left_to_it() -> None:
    q, flat = heads(1, 2, 8, 4, 0), heads(1, 2, 8, 0, 0)
    assert attention(q, q, q) is not None
    assert attention(q, q, q, torch.ones(8, dtype=torch.bool)) is None
    assert attention(flat, flat, q) is None


def test_what_the_kernel_has_not_is_left_to_torch() -> None:
    query, key, value = (heads(1, 4, 8, 16, seed) for seed in range(3))
    assert attention(query.float(), key, value) is None
    assert attention(query[0], key[0], value[0]) is None
    assert attention(query, key, value, torch.zeros(8, 8)) is None
    assert attention(query, key, value, torch.ones(8, 8, dtype=torch.bool), causal=True) is None
    assert attention(query, key[:, :3], value[:, :3]) is None
    assert attention(query, key[:, :, :0], value[:, :, :0]) is None


def test_the_compiled_kernel_refuses_what_it_cannot_take() -> None:
    native = dispatch.native()
    if native is None:
        pytest.skip("never built")
    x, out = heads(1, 2, 3, 4, 0), torch.empty(1, 2, 3, 4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="`key` must have dtype bfloat16, not float32"):
        native.attention(x, x.float(), x, None, False, 1.0, out)
    with pytest.raises(ValueError, match=r"`value` has shape \(1, 2, 2, 4\), but \(1, 2, 3, 4\)"):
        native.attention(x, x, x[:, :, :2], None, False, 1.0, out)
    with pytest.raises(ValueError, match="`mask` must have dtype bool"):
        native.attention(x, x, x, torch.zeros(1, 2, 3, 3), False, 1.0, out)
    with pytest.raises(ValueError, match="`query` must have its values side by side"):
        native.attention(x.transpose(2, 3), x, x, None, False, 1.0, out)
    with pytest.raises(ValueError, match="`key` must have heads"):
        native.attention(heads(1, 3, 3, 4, 0), x, x, None, False, 1.0, out)
