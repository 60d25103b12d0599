"""Codes of any width in a dense bit stream.

Layout: value i occupies bits ``i·b … i·b + b − 1`` of the stream, least significant bit first; bit k of the stream is
bit ``k mod 8`` of byte ``k div 8``. Signed codes are stored in two's complement of b bits. The last byte is filled with
zeros.
Eight values of b bits make exactly b bytes, which is how both directions work.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewbit.errors import FewbitError

_DTYPES = ((torch.int8, torch.uint8), (torch.int16, torch.uint16))  # up to 8 bits, 16 bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes in C order.

    Args:
        codes: int8, uint8, int16 or uint16, any shape, each within ``bits`` bits.
        bits: 1 to 8, or 16.

    Returns:
        uint8 ``[ceil(codes.numel() · bits / 8)]``.

    Raises:
        FewbitError: The codes have another dtype than codes of that width have.
    """
    _check(bits)
    if codes.dtype not in _DTYPES[bits > 8]:
        raise FewbitError(
            f"codes of {bits} bits have dtype {' or '.join(map(str, _DTYPES[bits > 8]))}, not {codes.dtype}"
        )
    flat = codes.contiguous().reshape(-1)
    if bits in (8, 16):
        return flat.view(torch.uint8).clone()
    eights = torch.nn.functional.pad(flat.view(torch.uint8), (0, -flat.numel() % 8)).reshape(-1, 8)
    word = torch.zeros(eights.shape[0], dtype=torch.int64, device=codes.device)
    for i in range(8):
        word |= (eights[:, i].to(torch.int64) & (2**bits - 1)) << (bits * i)
    packed = torch.stack([(word >> (8 * k) & 255).to(torch.uint8) for k in range(bits)], dim=1)
    return packed.reshape(-1)[: packed_size(flat.numel(), bits)].clone()


def unpack(data: Tensor, bits: int, count: int, signed: bool) -> Tensor:
    """The inverse of :func:`pack`.

    Args:
        data: uint8 ``[ceil(count · bits / 8)]``.
        bits: 1 to 8, or 16.
        count: How many codes.
        signed: Whether the codes are two's complement.

    Returns:
        ``[count]``: int8 or uint8, for 16 bits int16 or uint16.

    Raises:
        FewbitError: ``data`` has not the length that ``count`` and ``bits`` say.
    """
    _check(bits)
    if data.numel() != packed_size(count, bits):
        raise FewbitError(f"{count} codes of {bits} bits need {packed_size(count, bits)} bytes, not {data.numel()}")
    if bits in (8, 16):
        return data.contiguous().view(_DTYPES[bits > 8][0 if signed else 1]).clone()
    groups = torch.nn.functional.pad(data, (0, -data.numel() % bits)).reshape(-1, bits)
    word = torch.zeros(groups.shape[0], dtype=torch.int64, device=data.device)
    for k in range(bits):
        word |= groups[:, k].to(torch.int64) << (8 * k)
    codes = torch.stack([(word >> (bits * i) & (2**bits - 1)).to(torch.uint8) for i in range(8)], dim=1)
    codes = codes.reshape(-1)[:count]
    if not signed:
        return codes.clone()
    sign = 1 << (bits - 1)
    return (codes.view(torch.int8) ^ sign) - sign


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` codes of ``bits`` bits."""
    return math.ceil(count * bits / 8)


def _check(bits: int) -> None:
    if bits not in (1, 2, 3, 4, 5, 6, 7, 8, 16):
        raise FewbitError(f"codes are packed at 1 to 8 or 16 bits, not {bits}")
