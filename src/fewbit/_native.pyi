"""Compiled kernels of fewbit (csrc/), built for several instruction sets; one is chosen at import.

The environment variable ``FEWBIT_ISA`` (``amx``, ``avx512vnni``, ``avx512``, ``avxvnni``, ``avx2``, ``neon``,
``portable``) forces a set; a name that is unknown or cannot run on this processor makes the import fail with an
``ImportError`` that lists the possible ones. ``reference`` is accepted and loads ``portable``: ``fewbit.kernels`` then
uses its Python twins instead.

Every instruction set gives the same bits. Every function

* takes C-contiguous CPU arrays (torch, NumPy, anything with DLPack) without copying and writes into the
  output arrays it is given, which must not share memory with the inputs;
* raises ``ValueError`` with one sentence naming the argument if a memory order, dtype, shape or value does
  not fit, and ``TypeError`` for what is no array in memory, or an output that is read-only;
* releases the interpreter lock and shares its work among at most ``threads()`` threads; the bits do not depend on them.

R, C are rows and columns, either may be 0; a row is a quantization block.
"""

from typing import Any, TypeAlias

import numpy as np
import torch

Array: TypeAlias = torch.Tensor | np.ndarray[Any, Any]

def isa() -> str:
    """Name of the instruction set in use, such as ``"avx512vnni"`` or ``"portable"``."""

def available_isas() -> list[str]:
    """Instruction sets this build has and this processor runs, best first; the last is ``"portable"``."""

def use_isa(isa: str) -> None:
    """Go on with another instruction set, ``""`` for the best; for tests and benchmarks.

    Raises:
        RuntimeError: The name is unknown or this machine cannot run it.
    """

def cpu_features() -> list[str]:
    """Features of this processor that matter here, as Linux spells them."""

def set_team(entry: int) -> None:
    """Let calls of several rows run on the threads of an OpenMP runtime: the address of its ``GOMP_parallel``, or 0."""

def set_threads(threads: int) -> None:
    """How many threads a call may use from now on, the calling one included; 1 at import, at most 256."""

def threads() -> int:
    """What :func:`set_threads` last allowed."""

def minmax_rows(x: Array, out: Array) -> None:
    """Smallest and largest value of each row, exactly.

    A row with a NaN gives (NaN, NaN), an empty row (inf, -inf); -0 counts as smaller than +0.

    Args:
        x: float32, float16 or bfloat16 [R, C].
        out: float32 [R, 2], receives (min, max).
    """

def quantize_rows(x: Array, scale: Array, zp: Array, qmin: int, qmax: int, out: Array) -> None:
    """Codes ``clamp(round(x / scale) + zp, qmin, qmax)``, ties to even, bit for bit torch's float32 formula.

    A quotient that overflows saturates. A NaN quotient (which callers exclude) gives ``qmin``.

    Args:
        x: float32, float16 or bfloat16 [R, C]; computed in float32.
        scale: float32 [R].
        zp: int32 [R], each within ±2^20.
        qmin: Smallest code; ``qmin`` to ``qmax`` must fit the dtype of ``out``.
        qmax: Largest code.
        out: int8, uint8, int16 or uint16 [R, C], receives the codes.
    """

def quantize_rows_dynamic(x: Array, qmax: int, out: Array, scale: Array) -> None:
    """Symmetric quantization of each row by its own scale ``amax / qmax``; codes lie within ±qmax.

    A row of zeros has scale 1; any other scale is at least the smallest normal float32. A NaN in a row makes
    its scale NaN.

    Args:
        x: float32 [R, C].
        qmax: Largest code, 1 to 127.
        out: int8 [R, C], receives the codes.
        scale: float32 [R], receives the scales.
    """

def dequantize_rows(codes: Array, scale: Array, zp: Array, out: Array) -> None:
    """Values ``scale * (codes - zp)`` in float32; the difference is exact.

    Args:
        codes: int8, uint8, int16 or uint16 [R, C].
        scale: float32 [R].
        zp: int32 [R], each within ±2^20.
        out: float32 [R, C], receives the values.
    """

def histogram_rows(x: Array, inv_width: Array, counts: Array) -> None:
    """Add each row's values to its histogram: bin ``floor(x * inv_width) + B // 2``, clipped to 0 … B-1.

    The product is rounded to float32. A NaN (which callers exclude) counts in bin 0.

    Args:
        x: float32 [R, C].
        inv_width: float32 [R], the reciprocal of each row's bin width.
        counts: int64 [R, B] with B from 1 to 2^22; added to, not cleared.
    """

def histogram_grow(x: Array, counts: Array, exponent: Array, low: Array, high: Array) -> bool:
    """Add values to the histogram of one block over ``[-2^exponent, 2^exponent)``, which doubles until it holds them.

    Counts are merged as by :func:`rebin_rows` then, and added to as by :func:`histogram_rows`.

    Args:
        x: float32 [1, C].
        counts: int64 [1, B] with B a power of two from 4 to 2^22; added to, not cleared.
        exponent: int64 [1]; the reciprocal of the bin's width ``2^(exponent + 1) / B`` is at most 2^127.
        low: float32 [1], the smallest value so far.
        high: float32 [1], the largest.

    Returns:
        False, and nothing is changed, if a value is NaN or infinite.
    """

def mse_search_rows(x: Array, candidates: Array, symmetric: bool, qmin: int, qmax: int, lo: Array, hi: Array) -> None:
    """For each row the clip, among fractions p of its range, that quantizes it with the least squared error.

    Symmetric: the range is ±amax, ``scale = p * amax / qmax`` (``/ -qmin`` where qmax is 0), zero point 0.
    Asymmetric: the range is (min(min, 0), max(max, 0)), ``scale = p * (max - min) / (qmax - qmin)``,
    ``zero point = clamp(round(qmin - p * min / scale))``.

    The first of equal errors wins. Errors are summed in float32 (in float64 beyond 256 values), in the same
    order on every instruction set; clips whose errors differ by less than about one part in 10^5 may rank
    otherwise than in exact arithmetic. A candidate whose scale is subnormal or infinite is passed over; if
    all are, the first is taken. A row of zeros gives lo = hi = 0.

    Args:
        x: float32 [R, C].
        candidates: float32 [T], finite and positive, T at least 1.
        symmetric: Whether the clip mirrors around 0.
        qmin: Smallest code, at most 0.
        qmax: Largest code, at least 0.
        lo: float32 [R], receives the lower end of the best clip.
        hi: float32 [R], receives its upper end.
    """

def minmax_quantize_rows(
    x: Array, qmin: int, qmax: int, scale_type: str, bits: int, scale: Array, zp: Array | None, out: Array
) -> bool:
    """Range, scale, zero point and packed codes of each row in one pass; the bits of ``fewbit.numbers.affine``.

    Args:
        x: float32, float16 or bfloat16 [R, C].
        qmin: Smallest code.
        qmax: Largest code, beyond ``qmin``.
        scale_type: What scales are rounded to: ``"f32"``, ``"f16"`` or ``"bf16"``.
        bits: Width of a packed code, 1 to 8.
        scale: float32 [R], receives the scales.
        zp: int32 [R], receives the zero points; None for symmetric codes.
        out: uint8 [ceil(R C bits / 8)], receives the stream that :func:`unpack` reads.

    Returns:
        False if a value is NaN or infinite or a scale is subnormal or beyond its type; what was written is of no use.
    """

def refine_clip_rows(
    x: Array, moves: Array, rounds: int, worth_another: float, qmin: int, qmax: int, lo: Array, hi: Array
) -> None:
    """Move the two ends of each row's clip by factors while its squared error under asymmetric codes falls.

    Errors are computed as by :func:`mse_search_rows`; see ``fewbit.kernels.reference.refine_clip_rows``.

    Args:
        x: float32 [R, C].
        moves: float32 [T], finite and positive.
        rounds: Most rounds, each moving the lower end and then the upper.
        worth_another: A row goes on after its error fell below this fraction of what it was.
        qmin: Smallest code, at most 0.
        qmax: Largest code, at least 0.
        lo: float32 [R], the lower ends, changed.
        hi: float32 [R], the upper ends, changed.
    """

def rebin_rows(counts: Array, doublings: Array) -> None:
    """Counts after the range doubled: bin j from the middle, ``B // 2``, goes to ``floor(j / 2^k)``, in place.

    Args:
        counts: int64 [R, B].
        doublings: int64 [R], k of each row; 0 or less leaves it.
    """

def kl_divergences(counts: Array, start: Array, stop: Array, levels: int, smoothing: float, out: Array) -> None:
    """``KL(P || Q)`` of windows ``[start, stop)`` of a histogram; see ``fewbit.calibrate.entropy``.

    Args:
        counts: float64 [B].
        start: int64 [W].
        stop: int64 [W]; a window has at least ``levels`` bins.
        levels: Levels of Q.
        smoothing: Share of the uniform distribution in Q.
        out: float64 [W], infinite for a window without counts.
    """

def peak(what: str, pieces: int, rounds: int) -> float:
    """Do as many multiply-adds as the processor can, to measure it; the number of operations, two a multiply-add.

    Args:
        what: ``"float32"`` or ``"int8"`` vector products, or ``"tiles"``: AMX's int8 products.
        pieces: Pieces that threads share.
        rounds: Length of a piece.

    Returns:
        0 where the instruction set in use has no such unit.
    """

def read_memory(data: Array) -> int:
    """Read all of an int64 [n], to measure how fast; the sum of its whole blocks of 32 words, modulo 2^64."""

def pack(codes: Array, bits: int, out: Array) -> None:
    """The inverse of :func:`unpack`; what lies above ``bits`` bits of a code is dropped.

    Args:
        codes: int8 or uint8 [n].
        bits: Width of a packed code, 1 to 8.
        out: uint8 [ceil(n * bits / 8)].
    """

def weigh(
    weight: Array,
    carry: Array,
    factor: Array,
    scale: Array,
    zero: Array,
    qmin: int,
    qmax: int,
    power: int,
    error: Array,
) -> None:
    """The error of each row under each candidate, as if no column made up for another.

    With ``wanted = weight_j + carry_j / factor_jj`` it is the sum over j of the magnitude of
    ``(wanted - scale * round(wanted / scale)) * factor_jj`` to the given power, codes within bounds, in float32 and in
    this order.

    Args:
        weight: float32 [R, C].
        carry: float32 [R, C].
        factor: float32 [C, C]; its diagonal is above 0.
        scale: float32 [R, T], positive.
        zero: float32 [R, T], whole numbers within ±2^20.
        qmin: Smallest code.
        qmax: Largest code.
        power: 2, 3 or 4.
        error: float32 [R, T], receives the errors.
    """

def nearest_plane(
    weight: Array,
    carry: Array,
    factor: Array,
    scale: Array,
    zero: Array,
    by_column: bool,
    qmin: int,
    qmax: int,
    codes: Array,
    change: Array,
    error: Array,
    best: Array,
) -> None:
    """Codes of each row, one column after another, each making up for the ones before.

    For column j: ``wanted = weight_j + carry_j / factor_jj``, the code is the nearest to ``wanted / scale + zero``
    within bounds, ``change_j = weight_j - scale * (code - zero)``, and ``change_j * factor_jk`` is added to ``carry_k``
    of every column k > j. The error is the sum of the squares of ``carry_j + change_j * factor_jj``. Everything is in
    float32, in this order; of a row's candidates the first with the least error is taken.

    Args:
        weight: float32 [R, C].
        carry: float32 [R, C].
        factor: float32 [C, C], upper triangular; its diagonal is above 0.
        scale: float32 [R, T], positive; [R, C] if ``by_column``.
        zero: float32 of the scale's shape, whole numbers within ±2^20.
        by_column: Whether there is a scale for each column instead of T candidates.
        qmin: Smallest code.
        qmax: Largest code.
        codes: int32 [R, C], receives the codes.
        change: float32 [R, C], receives the change.
        error: float32 [R], receives the error.
        best: int32 [R], receives which candidate was taken.
    """

def descend(
    gram: Array,
    scale: Array,
    zero: Array,
    group: int,
    qmin: int,
    qmax: int,
    sweeps: int,
    codes: Array,
    gradient: Array,
) -> None:
    """Move codes, one column after another, where that lowers the row's error ``d G dᵀ``.

    Args:
        gram: float32 [C, C], symmetric.
        scale: float32 [R, ceil(C / group)], positive.
        zero: float32 of the scale's shape, whole numbers within ±2^20.
        group: Columns of one scale.
        qmin: Smallest code.
        qmax: Largest code.
        sweeps: At most so many; a row whose sweep changes nothing is done.
        codes: int32 [R, C], changed in place.
        gradient: float32 [R, C], ``d G`` with ``d = w - scale * (code - zero)``; changed in place.
    """

def gram(rows: Array, products: Array, sums: Array, magnitudes: Array) -> bool:
    r"""Add ``x xᵀ``, x and \|x\| over rows x; False, and nothing is added, where the instruction set has no tiles.

    Products are exact, their sums over all rows in float32 in a fixed order.

    Args:
        rows: bfloat16 [n, K].
        products: float64 or float32 [K, K], added to on and above the diagonal; what is below is no matter.
        sums: float64 [K], added to.
        magnitudes: float64 [K], added to.
    """

def attention(
    query: Array, key: Array, value: Array, mask: Array | None, causal: bool, scale: float, out: Array
) -> bool:
    """``softmax(scale · Q Kᵀ) V``; False, and nothing is written, where the instruction set has no such kernel.

    Unlike the others it takes strided arrays, of which only the values of a row must lie side by side, and runs on the
    calling thread alone.

    Args:
        query: bfloat16 [B, H, Q, D].
        key: bfloat16 [B, H', K, D]; H is a multiple of H'.
        value: bfloat16 [B, H', K, V].
        mask: bool [B, H, Q, K], which queries see which keys; None for all.
        causal: Without a mask: queries see the keys up to their own place.
        scale: Of the scores.
        out: bfloat16 [B, H, Q, V].
    """

def lookup(table: Array, x: Array, out: Array) -> None:
    """``out[i] = table[x[i]]``, the bits of a value of 16 bits as the place in the table.

    Args:
        table: Of 16 bits [65536].
        x: Of 16 bits [n].
        out: Of 16 bits [n].
    """

def unpack(data: Array, bits: int, signed: bool, out: Array) -> None:
    """One code a byte: code i is the bits from ``i * bits`` on of a little-endian stream, lowest bit first.

    Args:
        data: uint8 [ceil(n * bits / 8)].
        bits: Width of a code, 1 to 8.
        signed: Whether codes are two's complement, to be sign-extended.
        out: int8 [n] if ``signed``, uint8 [n] otherwise, receives the codes.
    """

class LowbitMatrix:
    """A weight matrix packed for the low-bit linear layers; see ``csrc/lowbit_layout.h``.

    Calls compute ``act(x̂ Ŵᵀ + bias)`` into ``out`` with ``Ŵ = scale (code - zero point)``; activation functions are
    ``relu``, ``silu``, ``gelu``, ``gelu_tanh`` and ``""`` for none. Integer products have the same bits on every
    instruction set; products in float do not.
    """

    def __init__(
        self, codes: Array, scale: Array, zero_point: Array | None, group: int, bits: int, sums: bool = False
    ) -> None:
        """Pack a matrix; nothing of the arguments is kept.

        Args:
            codes: int8 or uint8 [N, K], each within ``bits`` bits.
            scale: float32 [N, ceil(K / group)].
            zero_point: int32 of the same shape, within the codes' range; None for 0.
            group: Columns of a scale, a multiple of 32 up to 32768.
            bits: 2, 3, 4 or 8.
            sums: Whether activations may have zero points; costs 4 bytes a scale.

        Raises:
            ValueError: A code or zero point does not fit.
        """

    @property
    def nbytes(self) -> int:
        """Bytes of the packed form."""

    def linear_float(self, x: Array, bias: Array | None, out: Array, activation: str = "") -> None:
        """Products in float32.

        Args:
            x: float32 or bfloat16 [M, K].
            bias: float32 [N] or None.
            out: float32 or bfloat16 [M, N], receives the result.
            activation: Name of the activation function.
        """

    def linear_dynamic(
        self, x: Array, qmax: int, per_row: bool, bias: Array | None, out: Array, activation: str = ""
    ) -> None:
        """Products in int32 of x quantized as ``quantize_rows_dynamic`` does, per row or per row and group.

        Args:
            x: float32 or bfloat16 [M, K].
            qmax: Largest code, 1 to 127.
            per_row: One scale for a whole row.
            bias: float32 [N] or None.
            out: float32 or bfloat16 [M, N], receives the result.
            activation: Name of the activation function.
        """

    def linear_at(self, x: int, rows: int, bf16: bool, qmax: int, per_row: bool, bias: int, out: int) -> None:
        """``linear_float`` (``qmax`` 0) or ``linear_dynamic`` on memory that the caller answers for.

        Args:
            x: Address of float32, or bfloat16 if ``bf16``, [rows, K].
            rows: M.
            bf16: The type of ``x`` and ``out``.
            qmax: Largest code, from 1 to 127, or 0 for products in float.
            per_row: One scale a row, instead of one a row and group.
            bias: Address of float32 [N], or 0.
            out: Address of [rows, N], receives the result.
        """

    def linear_codes(
        self,
        x: Array,
        scale: Array,
        zero_point: Array | None,
        bias: Array | None,
        out: Array,
        activation: str = "",
    ) -> None:
        """Products in int32 of codes.

        Args:
            x: int8 or uint8 [M, K].
            scale: float32 [1] or [M].
            zero_point: int32 of the same length; None for 0.
            bias: float32 [N] or None.
            out: float32 or bfloat16 [M, N], receives the result.
            activation: Name of the activation function.
        """
