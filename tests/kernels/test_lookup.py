"""Tables of all bfloat16 values against the functions themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewbit.kernels import dispatch
from fewbit.kernels.lookup import lookup, lookup_reference, table_of

EVERY = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int16), other.contiguous().view(torch.int16))


@pytest.mark.parametrize("function", [F.silu, torch.tanh, torch.neg, lambda x: F.gelu(x, approximate="tanh")])
@pytest.mark.parametrize("find", [lookup, lookup_reference])
def test_every_value_gets_the_functions_bits(function, find) -> None:
    assert same(find(table_of(function), EVERY.flip(0)), function(EVERY).flip(0))


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (3, 5, 7), (2**16 + 3,), (513, 1024)])
def test_any_shape_keeps_it_and_agrees_with_the_twin(shape) -> None:
    table, x = table_of(torch.exp), torch.randn(shape).bfloat16()
    found = lookup(table, x)
    assert found.shape == x.shape
    assert found.dtype == torch.bfloat16
    assert same(found, lookup_reference(table, x))
    assert same(found, table[x.view(torch.uint16).to(torch.int64)])


def test_views_and_gradients_come_in_as_values() -> None:
    table, x = table_of(torch.abs), torch.randn(6, 8).bfloat16()
    assert same(lookup(table, x.t()), x.t().abs())
    assert same(lookup(table, x[:, ::2]), x[:, ::2].abs())
    assert not lookup(table, x.requires_grad_()).requires_grad


@pytest.mark.skipif(dispatch.native() is None, reason="the compiled module is not there")
def test_the_kernel_refuses_other_arrays() -> None:
    native = dispatch.native()
    table, x, out = np.zeros(2**16, np.uint16), np.zeros(9, np.uint16), np.zeros(9, np.uint16)
    native.lookup(table, x, out)
    for wrong in [(table[:-1], x, out), (table, x, out[:-1]), (table, x[::2], out[:5]), (table, x.reshape(3, 3), out)]:
        with pytest.raises(ValueError, match="`"):
            native.lookup(*wrong)
    with pytest.raises(ValueError, match="`x` must have a dtype of 16 bits, not float32"):
        native.lookup(table, x.astype(np.float32), out)
