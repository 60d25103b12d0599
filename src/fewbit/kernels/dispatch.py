"""The passes over tensors that quantizing needs, on the compiled kernels where they fit and on the reference where not.

``FEWBIT_ISA`` forces a backend: ``amx``, ``avx512vnni``, ``avx512``, ``avxvnni``, ``avx2``, ``neon`` and ``portable``
choose the compiled instruction set, ``reference`` the Python twins. All give the same bits.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels import reference, reference_kl, threads
from fewbit.numbers import packing
from fewbit.numbers.spec import QSpec


def forced_isa() -> str | None:
    """What ``FEWBIT_ISA`` asks for, or None."""
    return os.environ.get("FEWBIT_ISA", "").strip().lower() or None


def _load_native() -> ModuleType | None:
    if forced_isa() == "reference":
        return None
    try:
        return importlib.import_module("fewbit._native")
    except ModuleNotFoundError:  # a source tree that was never built: slow, but right
        return None
    except ImportError as error:
        raise FewbitError(str(error)) from error


_native = _load_native()
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def native() -> ModuleType | None:
    """The compiled module, or None where the reference runs instead."""
    return _native


def backend() -> str:
    """The instruction set in use, or ``reference``."""
    return "reference" if _native is None else str(_native.isa())


def _fits(*tensors: Tensor) -> bool:
    """Whether the compiled kernels take these tensors; they then know how many threads they may use."""
    if _native is None or not all(t.device.type == "cpu" and t.is_contiguous() for t in tensors):
        return False
    threads.follow_torch(_native)
    return True


def native_for(*tensors: Tensor) -> ModuleType | None:
    """The compiled kernels, ready to run, if they take these tensors: contiguous and on the CPU."""
    return _native if _fits(*tensors) else None


def minmax_rows(x: Tensor) -> Tensor:
    """Smallest and largest value of each row of ``[R, C]``: float32 ``[R, 2]``, NaN for a row that holds one."""
    x = x.detach()
    if _native is None or not _fits(x) or x.dtype == torch.float64:
        return reference.minmax_rows(x)
    out = torch.empty(x.shape[0], 2)
    _native.minmax_rows(x if x.dtype == torch.bfloat16 else x.numpy(), out.numpy())
    return out


def quantize_rows(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    """``clamp(round(x/s) + z)`` for each row of ``[R, C]``; see the reference."""
    x = x.detach()
    if _native is None or not _fits(x, scale, zero_point) or x.dtype not in _FLOATS or x.numel() == 0:
        return reference.quantize_rows(x, scale, zero_point, qmin, qmax)
    dtype = reference.code_dtype(qmin, qmax)
    if dtype == torch.int32:
        return reference.quantize_rows(x, scale, zero_point, qmin, qmax)
    out = torch.empty(x.shape, dtype=dtype)
    _native.quantize_rows(x, scale, zero_point, qmin, qmax, out)
    return out


def quantize_rows_dynamic(x: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
    """Symmetric int8 codes ``[R, C]`` and scales ``[R]`` of float32 ``[R, C]``, in one pass."""
    x = x.detach()
    if _native is None or not _fits(x) or x.dtype != torch.float32 or x.numel() == 0:
        return reference.quantize_rows_dynamic(x, qmax)
    out, scale = torch.empty(x.shape, dtype=torch.int8), torch.empty(x.shape[0])
    _native.quantize_rows_dynamic(x, qmax, out, scale)
    return out, scale


def dequantize_rows(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``s·(q − z)`` in float32 for each row of ``[R, C]``."""
    if _native is None or not _fits(codes, scale, zero_point) or codes.numel() == 0:
        return reference.dequantize_rows(codes, scale, zero_point)
    out = torch.empty(codes.shape)
    _native.dequantize_rows(codes, scale, zero_point, out)
    return out


def histogram_rows(x: Tensor, inv_width: Tensor, counts: Tensor) -> None:
    """Add each row of float32 ``[R, C]`` to ``counts`` int64 ``[R, B]``; see the reference."""
    x = x.detach()
    if _native is None or not _fits(x, inv_width, counts) or x.dtype != torch.float32:
        reference.histogram_rows(x, inv_width, counts)
    else:  # as arrays of NumPy, which are handed over in a tenth of the time
        _native.histogram_rows(x.numpy(), inv_width.numpy(), counts.numpy())


def histogram_grow(x: Tensor, counts: Tensor, exponent: Tensor, low: Tensor, high: Tensor) -> bool:
    """Add float32 ``[1, C]`` to a histogram ``counts [1, B]`` whose range grows; see the reference."""
    if _native is None or not _fits(x, counts, exponent, low, high):
        return reference.histogram_grow(x, counts, exponent, low, high)
    arrays = (x.numpy(), counts.numpy(), exponent.numpy(), low.numpy(), high.numpy())
    return bool(_native.histogram_grow(*arrays))


def mse_search_rows(x: Tensor, candidates: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    """The clip ``lo [R]``, ``hi [R]`` of each row of ``[R, C]`` with the least squared error; see the reference.

    Args:
        x: Floating ``[R, C]``, one row a block.
        candidates: Fractions of each row's range, float32 ``[T]``.
        spec: An integer spec; its qmin, qmax and symmetry are used.
    """
    x = x.detach().to(torch.float32).contiguous()
    qmin, qmax = int(spec.qmin), int(spec.qmax)
    if _native is None or not _fits(x, candidates) or x.numel() == 0:
        return reference.mse_search_rows(x, candidates, spec.symmetric, qmin, qmax)
    lo, hi = torch.empty(x.shape[0]), torch.empty(x.shape[0])
    _native.mse_search_rows(x, candidates, spec.symmetric, qmin, qmax, lo, hi)
    return lo, hi


def refine_clip_rows(
    x: Tensor, moves: Tensor, rounds: int, worth_another: float, spec: QSpec, lo: Tensor, hi: Tensor
) -> tuple[Tensor, Tensor]:
    """Better ends ``lo [R]``, ``hi [R]`` of the clips of the rows of ``[R, C]``; see the reference."""
    x = x.detach().to(torch.float32).contiguous()
    qmin, qmax = int(spec.qmin), int(spec.qmax)
    if _native is None or not _fits(x, moves, lo, hi) or x.numel() == 0:
        return reference.refine_clip_rows(x, moves, rounds, worth_another, qmin, qmax, lo, hi)
    lo, hi = lo.clone(), hi.clone()
    _native.refine_clip_rows(x, moves, rounds, worth_another, qmin, qmax, lo, hi)
    return lo, hi


def rebin_rows(counts: Tensor, doublings: Tensor) -> Tensor:
    """``counts [R, B]`` after ``doublings [R]`` of the range, changed in place where that can be; see the reference."""
    if _native is None or not _fits(counts, doublings):
        return reference.rebin_rows(counts, doublings)
    _native.rebin_rows(counts, doublings)
    return counts


def kl_divergences(counts: Tensor, start: Tensor, stop: Tensor, levels: int, smoothing: float) -> Tensor:
    """``KL(P || Q)`` of each window of a histogram, float64 ``[W]``; see the reference."""
    counts, start, stop = counts.contiguous(), start.contiguous(), stop.contiguous()
    if _native is None or not _fits(counts, start, stop):
        return reference_kl.kl_divergences(counts, start, stop, levels, smoothing)
    out = torch.empty(len(start), dtype=torch.float64)
    _native.kl_divergences(counts, start, stop, levels, smoothing, out)
    return out


def minmax_quantize_rows(x: Tensor, spec: QSpec, bits: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, packed to ``bits``, scales and zero points of the rows of ``[R, C]`` over their own ranges.

    Args:
        x: Floating ``[R, C]``.
        spec: An integer spec of at most 8 bits; its granularity is not used.
        bits: Width of a packed code, 8 for one byte a code.

    Returns:
        The stream of codes uint8, scales float32 ``[R]``, and zero points int32 ``[R]`` or None.

    Raises:
        FewbitError: A value is NaN or infinite, or a scale does not fit.
    """
    x = x.detach()
    if _native is None or not _fits(x) or x.dtype not in _FLOATS or x.numel() == 0:
        return reference.minmax_quantize_rows(x, spec, bits)
    rows = x.shape[0]
    out, scale = torch.empty(packing.packed_size(x.numel(), bits), dtype=torch.uint8), torch.empty(rows)
    zero_point = None if spec.symmetric else torch.empty(rows, dtype=torch.int32)
    done = _native.minmax_quantize_rows(
        x, int(spec.qmin), int(spec.qmax), spec.scale_type, bits, scale, zero_point, out
    )
    return (out, scale, zero_point) if done else reference.minmax_quantize_rows(x, spec, bits)


def pack(codes: Tensor, bits: int) -> Tensor:
    """The packed stream of codes of one or two bytes each, see :mod:`fewbit.numbers.packing`."""
    flat = codes.contiguous().reshape(-1)
    if _native is None or not _fits(flat) or bits > 8 or flat.dtype not in (torch.int8, torch.uint8):
        return reference.pack(codes, bits)
    out = torch.empty(packing.packed_size(flat.numel(), bits), dtype=torch.uint8)
    _native.pack(flat, bits, out)
    return out


def unpack(data: Tensor, bits: int, count: int, signed: bool) -> Tensor:
    """Codes of a packed stream, see :mod:`fewbit.numbers.packing`."""
    if _native is None or not _fits(data) or bits > 8 or data.numel() != packing.packed_size(count, bits):
        return reference.unpack(data, bits, count, signed)
    out = torch.empty(count, dtype=torch.int8 if signed else torch.uint8)
    _native.unpack(data, bits, signed, out)
    return out
