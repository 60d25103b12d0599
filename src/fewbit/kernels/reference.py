"""The slow, obviously right twin of every kernel: the oracle of the tests, and what runs under
``FEWBIT_ISA=reference``.

Integers are computed in int64, so that nothing can overflow or saturate before it is looked at.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.numbers import affine, packing
from fewbit.numbers.granularity import PerChannel
from fewbit.numbers.spec import QSpec

_INT32 = torch.iinfo(torch.int32)


def int_matmul(a: Tensor, b: Tensor, a_zero_point: Tensor | int = 0, b_zero_point: Tensor | int = 0) -> Tensor:
    """``(A − z_a)(B − z_b)`` by the expanded form, every zero-point term apart.

    ``A_q B_q − z_a Σ_K B_q − z_b Σ_K A_q + K z_a z_b`` (arXiv 1712.05877, equation 7).

    Args:
        a: Integer codes ``[…, M, K]``.
        b: Integer codes ``[…, K, N]``.
        a_zero_point: Scalar, or broadcastable to ``[…, M, 1]``.
        b_zero_point: Scalar, or broadcastable to ``[…, 1, N]``.

    Returns:
        int32 ``[…, M, N]``.

    Raises:
        FewbitError: A result does not fit int32.
    """
    return _to_int32(wide_matmul(a, b, a_zero_point, b_zero_point))


def wide_matmul(a: Tensor, b: Tensor, a_zero_point: Tensor | int = 0, b_zero_point: Tensor | int = 0) -> Tensor:
    """:func:`int_matmul` with int64 results, for codes of 16 bits and any depth."""
    a, b = a.to(torch.int64), b.to(torch.int64)
    za, zb = _int64(a_zero_point, a), _int64(b_zero_point, b)
    depth = a.shape[-1]
    product = torch.matmul(a, b)
    return product - za * b.sum(-2, keepdim=True) - zb * a.sum(-1, keepdim=True) + depth * za * zb


def int_conv(
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | int = 0,
    weight_zero_point: Tensor | int = 0,
    *,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Tensor:
    """Convolution of codes; the border is the real 0, that is the code ``x_zero_point``.

    Args:
        x: Integer codes ``[N, C, *spatial]``.
        weight: Integer codes ``[O, C/groups, *kernel]``.
        x_zero_point: One for the tensor.
        weight_zero_point: Scalar or ``[O]``.
        stride: One for each spatial axis.
        padding: (before, after) for each spatial axis.
        dilation: One for each spatial axis.
        groups: Channel groups.

    Returns:
        int32 ``[N, O, *out]``.
    """
    walk = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _to_int32(wide_conv(x, weight, x_zero_point, weight_zero_point, **walk))  # type: ignore[arg-type]


def wide_conv(
    x: Tensor,
    weight: Tensor,
    x_zero_point: Tensor | int = 0,
    weight_zero_point: Tensor | int = 0,
    *,
    stride: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int = 1,
) -> Tensor:
    """:func:`int_conv` with int64 results."""
    patches = _patches(_pad(x.to(torch.int64), padding, int(x_zero_point)), weight.shape[2:], stride, dilation)
    batch, channels, out = x.shape[0], x.shape[1], patches.shape[2 : 2 + len(stride)]
    rows = patches.reshape(batch, groups, channels // groups, math.prod(out), -1).transpose(2, 3).flatten(3)
    columns = weight.to(torch.int64).reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)
    zero_points = _int64(weight_zero_point, x).expand(weight.shape[0]).reshape(groups, 1, -1)
    product = wide_matmul(rows, columns, int(x_zero_point), zero_points)  # [N, groups, positions, O/groups]
    return product.transpose(2, 3).reshape(batch, weight.shape[0], *out)


def _pad(x: Tensor, padding: tuple[tuple[int, int], ...], value: int) -> Tensor:
    flat = [side for pair in reversed(padding) for side in pair]
    return torch.nn.functional.pad(x, flat, value=value)


def _patches(x: Tensor, kernel: torch.Size, stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """``[N, C, *out, *kernel]``."""
    for axis, (k, s, d) in enumerate(zip(kernel, stride, dilation)):
        x = x.unfold(2 + axis, (k - 1) * d + 1, s)[..., ::d]
    return x


def requantize(
    accumulator: Tensor, multiplier: Tensor | float, zero_point: Tensor | int, qmin: int, qmax: int
) -> Tensor:
    """``clamp(round(acc · M) + z)`` with a real multiplier ``M = s_x s_w / s_y``; int32 in, int32 out."""
    scaled = torch.round(accumulator.to(torch.float64) * torch.as_tensor(multiplier, dtype=torch.float64))
    return (scaled + torch.as_tensor(zero_point)).clamp(qmin, qmax).to(torch.int32)


def linear_groups(
    x: Tensor, x_scale: Tensor, weight: Tensor, scale: Tensor, zero_point: Tensor | None, group: int
) -> Tensor:
    """``Σ_g s_x s_w Σ_{k in g} X (W − z)``: a linear layer whose operands have a scale for each group of columns.

    Args:
        x: Integer codes ``[M, K]``.
        x_scale: ``[M, G]``.
        weight: Integer codes ``[N, K]``.
        scale: ``[N, G]``.
        zero_point: int32 ``[N, G]``, or None for 0.
        group: Columns of a group; the last may be shorter.

    Returns:
        float64 ``[M, N]``.
    """
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64, device=x.device)
    for g, start in enumerate(range(0, x.shape[1], group)):
        zero: Tensor | int = 0 if zero_point is None else zero_point[:, g]
        product = wide_matmul(x[:, start : start + group], weight[:, start : start + group].t(), 0, zero)
        total += product * x_scale[:, g, None].to(torch.float64) * scale[:, g].to(torch.float64)
    return total


def quantize_rows(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """``clamp(round(x/s) + z)`` for each row of ``[R, C]``; the narrowest integer dtype that holds qmin … qmax."""
    codes = torch.round(x.to(torch.float32) / scale[:, None]) + zero_point[:, None].to(torch.float32)
    return codes.clamp(qmin, qmax).nan_to_num(qmin).to(code_dtype(qmin, qmax))  # NaN has no code; callers refuse it


def quantize_rows_dynamic(x: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """Symmetric codes within ±qmax and the scales of the rows of ``[R, C]``.

    The scale is amax/qmax, at least the smallest normal float32, 1 for a row of zeros, and NaN for a row with an
    infinity, which no scale serves: what is multiplied with it shows that.
    """
    amax = x.to(torch.float32).abs().amax(dim=1)
    scale = torch.where(amax == 0, 1.0, (amax / qmax).clamp(min=torch.finfo(torch.float32).tiny))
    scale = torch.where(amax == math.inf, math.nan, scale)
    return quantize_rows(x, scale, torch.zeros_like(scale, dtype=torch.int32), -qmax, qmax), scale


def dequantize_rows(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``s·(q − z)`` in float32 for each row of ``[R, C]``."""
    return (codes.to(torch.float32) - zero_point[:, None].to(torch.float32)) * scale[:, None]


def minmax_rows(x: Tensor) -> Tensor:
    """``[R, 2]``: smallest and largest of each row, NaN if the row holds one."""
    low, high = torch.aminmax(x.to(torch.float32), dim=1)
    return torch.stack([low, high], dim=1)


def histogram_rows(x: Tensor, inv_width: Tensor, counts: Tensor) -> None:
    """Add each row of ``[R, C]`` to ``counts [R, B]``: bin ``floor(x/width) + B/2``, clipped to the ends."""
    bins = counts.shape[1]
    index = torch.floor(x.to(torch.float32) * inv_width[:, None]) + bins // 2
    index = index.clamp(0, bins - 1).to(torch.int64)
    counts.scatter_add_(1, index, torch.ones_like(index))


def rebin_rows(counts: Tensor, doublings: Tensor) -> Tensor:
    """``counts [R, B]`` after ``doublings [R]`` of the range: bin j from the middle goes to ``floor(j / 2^k)``."""
    bins = counts.shape[1]
    from_middle = torch.arange(bins) - bins // 2
    shift = doublings.clamp(min=0, max=62).unsqueeze(1)
    target = torch.bitwise_right_shift(from_middle, shift) + bins // 2
    return torch.zeros_like(counts).scatter_add_(1, target, counts)


def histogram_grow(x: Tensor, counts: Tensor, exponent: Tensor, low: Tensor, high: Tensor) -> bool:
    """Add ``[1, C]`` to a histogram ``[1, B]`` over ``[-2^exponent, 2^exponent)``, all in place.

    The range doubles until it holds the values. ``low [1]`` and ``high [1]`` become the extremes of all.

    Returns:
        False, and nothing is changed, if a value is NaN or infinite.
    """
    least, most = minmax_rows(x)[0].tolist()
    if not (math.isfinite(least) and math.isfinite(most)):
        return False
    amax, half = max(-least, most), counts.shape[1].bit_length() - 2
    doublings = math.frexp(amax)[1] - int(exponent) if amax > 0 else 0
    if doublings > 0:
        counts.copy_(rebin_rows(counts, torch.tensor([doublings])))
        exponent += doublings
    histogram_rows(x, torch.tensor([2.0 ** (half - int(exponent))]), counts)
    low.clamp_(max=least)
    high.clamp_(min=most)
    return True


def mse_search_rows(x: Tensor, candidates: Tensor, symmetric: bool, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """The clip of each row of ``[R, C]`` with the least squared error, among fractions of its own range.

    Args:
        x: float32 ``[R, C]``.
        candidates: Fractions ``[T]``; the first of equals wins.
        symmetric: Clip at ±p·amax; otherwise at p·min(lo, 0) and p·max(hi, 0) with a zero point.
        qmin: Smallest code.
        qmax: Largest code.

    Returns:
        ``lo [R]`` and ``hi [R]``.
    """
    low, high = minmax_rows(x).unbind(1)
    if symmetric:
        high = torch.maximum(low.abs(), high.abs())
        low = -high
    low, high = low.clamp(max=0), high.clamp(min=0)
    best = torch.full_like(low, math.inf, dtype=torch.float64)
    best_low, best_high = low.clone(), high.clone()
    for p in candidates.tolist():
        clip_low, clip_high = low * p, high * p
        width = clip_high if symmetric else clip_high - clip_low
        scale = width / ((qmax or -qmin) if symmetric else qmax - qmin)
        scale = torch.where(scale > 0, scale, 1.0)
        zero = torch.zeros_like(scale) if symmetric else torch.round(qmin - clip_low / scale).clamp(qmin, qmax)
        codes = (torch.round(x / scale[:, None]) + zero[:, None]).clamp(qmin, qmax)
        # In float64, where the square of the largest float32 does not overflow.
        error = (scale[:, None] * (codes - zero[:, None]) - x).to(torch.float64).square().sum(dim=1)
        better = error < best
        best = torch.where(better, error, best)
        best_low, best_high = torch.where(better, clip_low, best_low), torch.where(better, clip_high, best_high)
    return best_low, best_high


def refine_clip_rows(
    x: Tensor, moves: Tensor, rounds: int, worth_another: float, qmin: int, qmax: int, lo: Tensor, hi: Tensor
) -> tuple[Tensor, Tensor]:
    """Move the two ends of each row's clip, each by itself, for as long as the squared error falls.

    Args:
        x: float32 ``[R, C]``.
        moves: Factors to try on an end; it stays within the row's range widened to hold 0.
        rounds: Most rounds; a round moves the lower end, then the upper.
        worth_another: A row goes on after its error fell below this fraction of what it was before the round.
        qmin: Smallest code.
        qmax: Largest code.
        lo: Lower ends ``[R]`` to begin with, at most 0.
        hi: Upper ends ``[R]``, at least 0.

    Returns:
        The ends ``lo [R]`` and ``hi [R]``.
    """
    low, high = minmax_rows(x).unbind(1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    least, active = _clip_errors(x, lo, hi, qmin, qmax), torch.ones_like(lo, dtype=torch.bool)
    for _ in range(rounds):
        before = least
        for lower in (True, False):
            from_lo, from_hi = lo, hi
            for move in moves.tolist():
                to_lo = torch.maximum(from_lo * move, low) if lower else from_lo
                to_hi = from_hi if lower else torch.minimum(from_hi * move, high)
                errors = _clip_errors(x, to_lo, to_hi, qmin, qmax)
                better = (errors < least) & active
                least = torch.where(better, errors, least)
                lo, hi = torch.where(better, to_lo, lo), torch.where(better, to_hi, hi)
        active = active & (least < worth_another * before)
    return lo, hi


def _clip_errors(x: Tensor, lo: Tensor, hi: Tensor, qmin: int, qmax: int) -> Tensor:
    """Squared error of each row under its clip, float64; infinite where the scale is no normal number."""
    scale = (hi - lo) / (qmax - qmin)
    usable = (scale >= torch.finfo(torch.float32).tiny) & torch.isfinite(scale)
    step = torch.where(usable, scale, 1.0)[:, None]
    zero = torch.round(qmin - lo[:, None] / step).clamp(qmin, qmax)
    codes = (torch.round(x / step) + zero).clamp(qmin, qmax)
    errors = (step * (codes - zero) - x).to(torch.float64).square().sum(dim=1)
    return torch.where(usable, errors, math.inf)


def minmax_quantize_rows(x: Tensor, spec: QSpec, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Round each row of ``[R, C]`` to nearest over its own range, and pack the codes.

    Args:
        x: Floating ``[R, C]``.
        spec: An integer spec of at most 8 bits; its granularity is not used.
        bits: Width of a packed code, 8 for one byte a code.

    Returns:
        The stream of codes uint8, scales float32 ``[R]``, and zero points int32 ``[R]`` or None.

    Raises:
        FewbitError: A value is NaN or infinite, or a scale does not fit.
    """
    low, high = minmax_rows(x).unbind(1)
    scale, zero_point = affine.scale_and_zero_point(low, high, replace(spec, granularity=PerChannel(0)))
    zero = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point
    codes = quantize_rows(x, scale, zero, int(spec.qmin), int(spec.qmax))
    return packing.pack(codes.to(spec.format.code_dtype), bits), scale, zero_point


def pack(codes: Tensor, bits: int) -> Tensor:
    """A packed stream of codes, see :mod:`fewbit.numbers.packing`."""
    return packing.pack(codes, bits)


def unpack(data: Tensor, bits: int, count: int, signed: bool) -> Tensor:
    """Codes of a packed stream, see :mod:`fewbit.numbers.packing`."""
    return packing.unpack(data, bits, count, signed)


def code_dtype(qmin: int, qmax: int) -> torch.dtype:
    """The narrowest torch integer for codes from qmin to qmax."""
    for dtype in (torch.int8, torch.uint8, torch.int16):
        info = torch.iinfo(dtype)
        if info.min <= qmin and qmax <= info.max:
            return dtype
    return torch.int32


def _int64(value: Tensor | int, like: Tensor) -> Tensor:
    return torch.as_tensor(value, device=like.device).to(torch.int64)


def _to_int32(product: Tensor) -> Tensor:
    if product.numel() and bool((product.amax() > _INT32.max) | (product.amin() < _INT32.min)):
        raise FewbitError("an integer product does not fit int32; split K")
    return product.to(torch.int32)
