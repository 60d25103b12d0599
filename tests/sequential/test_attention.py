"""The kernel in the place of torch's attention, in one thread and for a while."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.sequential import attention as room
from fewbit.sequential.attention import faster_attention
from fewbit.sequential.forward import computing


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, bool, float | None]]:
    """What the kernel is asked, which answers with zeros."""
    calls: list[tuple[torch.dtype, bool, float | None]] = []

    def attention(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, scale: float | None
    ) -> Tensor | None:
        if query.dtype != torch.bfloat16:
            return None
        calls.append((query.dtype, causal, scale))
        return torch.zeros_like(query)

    monkeypatch.setattr(room, "attention", attention)
    return calls


def test_calls_under_autocast_to_bfloat16_go_to_the_kernel(asked) -> None:
    x, before = torch.randn(1, 2, 4, 8), F.scaled_dot_product_attention
    with torch.no_grad(), computing("bfloat16"):
        assert not F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.5).any()
    assert asked == [(torch.bfloat16, True, 0.5)]
    assert F.scaled_dot_product_attention is before
    with torch.no_grad(), computing("float32"):
        assert F.scaled_dot_product_attention(x, x, x).any()
    assert len(asked) == 1


def test_others_go_to_torch(asked) -> None:
    x = torch.randn(1, 2, 4, 8)
    with faster_attention():
        assert torch.equal(F.scaled_dot_product_attention(x, x, x), room._torch(x, x, x))  # float32, no autocast
        half = x.bfloat16()
        assert F.scaled_dot_product_attention(half, half, half, dropout_p=0.1).any()
        assert F.scaled_dot_product_attention(half[0], half[0], half[0]).any()
        wanted = half.clone().requires_grad_()
        F.scaled_dot_product_attention(wanted, half, half).sum().backward()
        assert wanted.grad is not None
        assert F.scaled_dot_product_attention(half, half[:, :1], half[:, :1], enable_gqa=True).shape == half.shape
    assert len(asked) == 1


def test_other_threads_and_the_time_after_have_torchs(asked) -> None:
    x, before = torch.randn(1, 2, 4, 8).bfloat16(), F.scaled_dot_product_attention
    found: list[Tensor] = []
    with faster_attention():
        with faster_attention():
            other = threading.Thread(target=lambda: found.append(F.scaled_dot_product_attention(x, x, x)))
            other.start()
            other.join()
        assert not F.scaled_dot_product_attention(x, x, x).any()
    assert found[0].any()
    assert len(asked) == 1
    assert F.scaled_dot_product_attention is before
    assert F.scaled_dot_product_attention(x, x, x).any()


def test_an_error_leaves_torchs_behind(asked) -> None:
    before = F.scaled_dot_product_attention
    with pytest.raises(KeyError), faster_attention():
        raise KeyError
    assert F.scaled_dot_product_attention is before
