"""Orthogonal matrices that spread outliers over all channels (QuaRot, Ashkboos et al., arXiv 2404.00456).

A Hadamard matrix has entries ±1 and orthogonal rows; over √n it is orthogonal. Those of a power of two are Sylvester's;
12, 20, 24, … are Paley's (first construction, for a prime q = 3 mod 4: size q + 1); products of the two sizes are
Kronecker products. Signs of the columns are drawn from a fixed seed (the randomized Hadamard transform), so that no
input is a row of the matrix.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SEED = 2404_00456
_LARGEST_PALEY = 512


def rotation(size: int) -> Tensor:
    """An orthogonal float64 ``[size, size]``: a randomized Hadamard matrix where one is known, else one from a QR
    decomposition of a fixed random matrix. The same size gives the same matrix."""
    generator = torch.Generator().manual_seed(_SEED + size)
    matrix = hadamard(size)
    if matrix is None:
        normal = torch.randn(size, size, generator=generator, dtype=torch.float64)
        q, r = torch.linalg.qr(normal)
        turned: Tensor = q * r.diagonal().sign()
        return turned
    signs = torch.randint(0, 2, (size,), generator=generator).to(torch.float64) * 2 - 1
    return matrix * signs / math.sqrt(size)


def hadamard(size: int) -> Tensor | None:
    """A float64 matrix of ±1 with ``H Hᵀ = size · I``, or None where no construction here gives one."""
    power = size & -size  # the largest power of two that divides the size
    odd = size // power
    if odd == 1:
        return _sylvester(size)
    # The core takes the odd part and as few twos as it needs.
    core = next((each for each in _core_sizes(odd, power) if _is_paley(each)), None)
    return None if core is None else torch.kron(_sylvester(size // core), _paley(core - 1))


def _core_sizes(odd: int, power: int) -> list[int]:
    return [odd * 2**k for k in range(2, power.bit_length()) if odd * 2**k <= _LARGEST_PALEY]


def _is_paley(size: int) -> bool:
    q = size - 1
    return q % 4 == 3 and all(q % d for d in range(3, math.isqrt(q) + 1, 2))


def _sylvester(size: int) -> Tensor:
    matrix, step = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while matrix.shape[0] < size:
        matrix = torch.kron(step, matrix)
    return matrix


def _paley(q: int) -> Tensor:
    """``I + S`` with the Jacobsthal matrix bordered by ones."""
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[[i * i % q for i in range(1, q)]] = 1
    character[0] = 0
    index = torch.arange(q)
    skew = torch.zeros(q + 1, q + 1, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = character[(index[:, None] - index[None, :]) % q]
    return skew + torch.eye(q + 1, dtype=torch.float64)
