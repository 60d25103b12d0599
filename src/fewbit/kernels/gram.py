"""Adding ``x xᵀ`` over rows x to sums of it: where rows are in bfloat16 on AMX's tiles or by AVX-512's products of
pairs, else by torch's products."""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.kernels import dispatch

_TILE = 512  # columns
# Products of so many rows are summed in float32 before they enter the accumulator.
_ROWS = 4096


def add_products(rows: Tensor, products: Tensor, sums: Tensor, magnitudes: Tensor) -> None:
    """Take in rows ``[n, K]``.

    Products are exact where rows are in bfloat16 and in float32 where not; their sums over rows are in float32, within
    ``n · 2⁻²⁴ · √(G_ii G_jj)`` of exact ones for each sum G_ij here, whichever way they are computed. How threads share
    the work does not change a bit.

    Args:
        rows: Floating, on the device of the others.
        products: float64 or float32 ``[K, K]``; on and above the diagonal the products are added, below is no matter.
        sums: float64 ``[K]``, to which ``Σ x`` is added.
        magnitudes: float64 ``[K]``, to which ``Σ |x|`` is added.
    """
    if rows.dtype == torch.bfloat16:
        rows = rows.contiguous()
        native = dispatch.native_for(rows, products, sums, magnitudes)
        if native is not None and native.gram(rows, products, sums, magnitudes):
            return
    add_products_reference(rows, products, sums, magnitudes)


def add_products_reference(rows: Tensor, products: Tensor, sums: Tensor, magnitudes: Tensor) -> None:
    """The twin of the kernel, for any rows."""
    rows = rows.to(torch.float32)
    sums += rows.sum(dim=0, dtype=torch.float64)
    magnitudes += rows.abs().sum(dim=0, dtype=torch.float64)
    with torch.autocast(rows.device.type, enabled=False):  # the model may run under one; G must stay exact
        for part in torch.split(rows, _ROWS):
            for start in range(0, rows.shape[1], _TILE):
                tile = part[:, start : start + _TILE]
                products[start : start + _TILE, start:] += tile.T @ part[:, start:]
