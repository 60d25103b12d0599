"""Attention of forward passes in bfloat16 on fewbit's own kernel where that is faster than torch's.

Any model that calls ``torch.nn.functional.scaled_dot_product_attention`` has it, whatever its architecture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.kernels.attention import attention

_wanted = threading.local()
_lock, _users = threading.Lock(), 0
_torch: Callable[..., Any] = F.scaled_dot_product_attention


@contextmanager
def faster_attention() -> Iterator[None]:
    """A context, of this thread, in which calls on bfloat16, or under autocast to it, go to
    :func:`fewbit.kernels.attention.attention` if that takes them.

    torch's function is replaced while any thread is in such a context; in others it is torch's as before. (torch's own
    way, a mode, sees each of some hundred calls in a block, and costs 3% of its time.)
    """
    depth = getattr(_wanted, "depth", 0)
    entered = False
    try:
        _wanted.depth = depth + 1
        _enter()
        entered = True
        yield
    finally:
        if entered:
            _leave()
        _wanted.depth = depth


def _enter() -> None:
    global _users, _torch
    with _lock:
        if F.scaled_dot_product_attention is not _here:
            _torch, F.scaled_dot_product_attention = F.scaled_dot_product_attention, _here
        _users += 1


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and F.scaled_dot_product_attention is _here:
            F.scaled_dot_product_attention = _torch


def _here(*args: Any, **kwargs: Any) -> Any:
    """In the place of torch's function."""
    found = _taken(*args, **kwargs) if getattr(_wanted, "depth", 0) else None
    return _torch(*args, **kwargs) if found is None else found


def _taken(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """The result, or None: gradients, dropout, a shape or a mask that the kernel has not."""
    tensors = (query, key, value)
    if dropout_p or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return None
    if any(t.dim() != 4 for t in tensors) or (not enable_gqa and key.shape[1] != query.shape[1]):
        return None
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        query, key, value = (t.to(torch.bfloat16) for t in tensors)
    return attention(query, key, value, attn_mask, is_causal, scale)
