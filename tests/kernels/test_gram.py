"""Sums of x xᵀ on tiles against the twin and against float64."""

from __future__ import annotations

import pytest
import torch

from fewbit.kernels import dispatch
from fewbit.kernels import gram as kernel

EPSILON = 2.0**-24


def state(columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (
        torch.zeros(columns, columns, dtype=dtype),
        torch.zeros(columns, dtype=torch.float64),
        torch.zeros(columns, dtype=torch.float64),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (2, 15), (31, 16), (33, 31), (64, 33), (5, 255), (40, 257), (513, 300), (1100, 530)]
)
def test_both_are_within_the_bound_of_exact_sums(rows: int, columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = (torch.randn(rows, columns, generator=generator) * torch.rand(columns, generator=generator) * 30 + 1).bfloat16()
    exact = x.double().T @ x.double()
    size = exact.diagonal().sqrt()
    for add in (kernel.add_products, kernel.add_products_reference):
        products, sums, magnitudes = state(columns, dtype)
        add(x, products, sums, magnitudes)
        add(x, products, sums, magnitudes)
        off = (products - 2 * exact).abs().triu() / (size[:, None] * size)
        assert float(off.max()) <= 2 * (rows + 2) * EPSILON
        torch.testing.assert_close(sums, 2 * x.double().sum(0), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(magnitudes, 2 * x.double().abs().sum(0), rtol=1e-5, atol=1e-4)


def test_threads_change_no_bit() -> None:
    x = torch.randn(700, 600, generator=torch.Generator().manual_seed(0)).bfloat16()
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            each = state(600, torch.float64)
            kernel.add_products(x, *each)
            found.append(each)
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a.triu() if a.dim() == 2 else a, b.triu() if b.dim() == 2 else b)
                   for a, b in zip(found[0], other))  # fmt: skip


def test_nan_and_infinity_reach_the_sums_and_no_rows_add_nothing() -> None:
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.ones(40, 20, dtype=torch.bfloat16)
        x[39, 19] = value
        products, sums, magnitudes = state(20, torch.float64)
        kernel.add_products(x, products, sums, magnitudes)
        assert not torch.isfinite(magnitudes[19])
        assert torch.isfinite(magnitudes[:19]).all()
        assert torch.isfinite(products[:19, :19].triu()).all()
    empty = state(20, torch.float64)
    kernel.add_products(torch.ones(0, 20, dtype=torch.bfloat16), *empty)
    assert all(not part.any() for part in empty)


def test_the_compiled_kernel_refuses_what_it_cannot_take() -> None:
    native = dispatch.native()
    if native is None:
        pytest.skip("never built")
    products, sums, magnitudes = state(4, torch.float64)
    with pytest.raises(ValueError, match="`rows` must have dtype bfloat16, not float32"):
        native.gram(torch.ones(2, 4), products, sums, magnitudes)
    x = torch.ones(2, 4, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"`products` has shape \(4, 4\), but|`products` must have dtype"):
        native.gram(x, products.half(), sums, magnitudes)
    with pytest.raises(ValueError, match="`sums` has shape"):
        native.gram(x, products, sums[:3], magnitudes)
