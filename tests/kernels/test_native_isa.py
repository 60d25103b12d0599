"""Every instruction set against every other, the choice between them, and what the binding refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache

import native_cases
import numpy as np
import pytest
import torch
from native_cases import matrix, searched
from torch import Tensor

from fewbit import _native as native


def python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FEWBIT_ISA": isa}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_portable_is_always_there_and_the_one_in_use_is_listed() -> None:
    assert native.available_isas()[-1] == "portable"
    assert native.isa() in native.available_isas()


@pytest.fixture
def best() -> Iterator[None]:
    """Back to the set the module came with."""
    before = native.isa()
    yield
    native.use_isa(before)


@cache
def digests_of(isa: str) -> dict[str, str]:
    native.use_isa(isa)
    assert native.isa() == isa
    return native_cases.digests()


@pytest.mark.parametrize("isa", native.available_isas())
@pytest.mark.usefixtures("best")
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    assert digests_of(isa) == digests_of("portable")


def test_the_variable_may_have_capitals_and_blanks_around() -> None:
    assert python(" Portable ", "-c", "from fewbit import _native; print(_native.isa())").stdout.strip() == "portable"


@pytest.mark.parametrize("isa", native.available_isas())
def test_the_variable_forces_an_instruction_set(isa: str) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOAD, native.__file__],
        env=os.environ | {"FEWBIT_ISA": isa},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == isa, done.stderr


# Without the package, whose torch takes seconds to import.
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.isa())
"""


def test_a_set_that_cannot_run_is_refused_later_too() -> None:
    with pytest.raises(RuntimeError, match="'mmx', but this machine can run only"):
        native.use_isa("mmx")


def test_the_processor_has_what_the_set_in_use_needs() -> None:
    needs = {"amx": "amx_int8", "avx512vnni": "avx512_vnni", "avx512": "avx512f", "avxvnni": "avx_vnni", "avx2": "avx2"}
    for isa in native.available_isas():
        assert isa == "portable" or needs.get(isa, "asimddp") in native.cpu_features()


def test_an_instruction_set_that_cannot_run_is_refused_at_import() -> None:
    done = python("mmx", "-c", "import fewbit._native")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: FEWBIT_ISA is 'mmx', but this machine can run only")


def test_reference_loads_the_portable_kernels() -> None:
    done = python("reference", "-c", "import fewbit._native as n; print(n.isa())")
    assert done.stdout.strip() == "portable", done.stderr


def test_other_threads_run_while_a_kernel_does() -> None:
    x, candidates = matrix(1, 200_000), torch.linspace(1.0, 0.2, 3000)
    lasted: list[float] = []

    def work() -> None:
        begin = time.perf_counter()
        searched(x, candidates, True, -8, 7)
        lasted.append(time.perf_counter() - begin)

    worker = threading.Thread(target=work)
    worker.start()
    longest, last = 0.0, time.perf_counter()
    while worker.is_alive():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert longest < 0.8 * lasted[0]


# --- what the binding refuses -------------------------------------------------------------------

I8, U8, I32, I64, F64 = torch.int8, torch.uint8, torch.int32, torch.int64, torch.float64
X, S, Z, P = torch.ones(2, 3), torch.ones(2), torch.zeros(2, dtype=I32), torch.ones(4)
Q, B = torch.empty(2, 3, dtype=I8), torch.empty(2, dtype=U8)


def e(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


C = e(1, 8, dtype=I64)
REFUSED: list[tuple[str, Callable[..., None], tuple[object, ...]]] = [
    ("`x` must have 2 dimensions, but has shape (3,)", native.minmax_rows, (e(3), e(1, 2))),
    ("`x` must be contiguous in C order", native.minmax_rows, (e(3, 2).t(), e(2, 2))),
    (
        "`x` must have dtype float32, float16 or bfloat16, not float64",
        native.minmax_rows,
        (X.double(), e(2, 2)),
    ),
    ("`x` must have dtype float32, float16 or bfloat16, not int16", native.minmax_rows, (X.short(), e(2, 2))),
    ("`out` has shape (3, 2), but (2, 2) is needed here", native.minmax_rows, (X, e(3, 2))),
    ("`out` must have dtype float32, not float64", native.minmax_rows, (X, e(2, 2, dtype=F64))),
    ("`out` must be contiguous in C order", native.minmax_rows, (X, e(2, 4)[:, ::2])),
    ("`x` must have dtype float32, float16 or bfloat16", native.quantize_rows, (X.double(), S, Z, -8, 7, Q)),
    ("`scale` has shape (3,), but (2,) is needed here", native.quantize_rows, (X, e(3), Z, -8, 7, Q)),
    ("`zp` must have dtype int32, not int64", native.quantize_rows, (X, S, Z.long(), -8, 7, Q)),
    ("`zp` holds 1048577 in row 0, beyond +-2^20", native.quantize_rows, (X, S, Z + (1 << 20) + 1, -8, 7, Q)),
    ("`qmin` and `qmax` are -129 and 127", native.quantize_rows, (X, S, Z, -129, 127, Q)),
    ("must be in order and fit the codes' -128 to 127", native.quantize_rows, (X, S, Z, 0, 128, Q)),
    ("`qmin` and `qmax` are 7 and -8", native.quantize_rows, (X, S, Z, 7, -8, Q)),
    ("`qmin` and `qmax` are -1 and 255", native.quantize_rows, (X, S, Z, -1, 255, Q.view(U8))),
    (
        "`out` must have dtype int8, uint8, int16 or uint16, not int32",
        native.quantize_rows,
        (X, S, Z, -8, 7, Q.int()),
    ),
    ("`qmax` is 128, but must be from 1 to 127", native.quantize_rows_dynamic, (X, 128, Q, S)),
    ("`qmax` is 0, but must be from 1 to 127", native.quantize_rows_dynamic, (X, 0, Q, S)),
    ("`out` must have dtype int8, not uint8", native.quantize_rows_dynamic, (X, 127, Q.view(U8), S)),
    (
        "`codes` must have dtype int8, uint8, int16 or uint16, not int64",
        native.dequantize_rows,
        (Q.long(), S, Z, X),
    ),
    ("`zp` holds -1048577 in row 0", native.dequantize_rows, (Q, S, Z - (1 << 20) - 1, X)),
    ("`out` has shape (2, 4), but (2, 3) is needed here", native.dequantize_rows, (Q, S, Z, e(2, 4))),
    ("`counts` must have dtype int64, not int32", native.histogram_rows, (X, S, e(2, 8, dtype=I32))),
    (
        "`counts` has shape (1, 8), but (2, 8) is needed here",
        native.histogram_rows,
        (X, S, e(1, 8, dtype=I64)),
    ),
    ("`counts` has 0 bins a row", native.histogram_rows, (X, S, e(2, 0, dtype=I64))),
    ("`x` has shape (2, 3), but (1, 3) is needed", native.histogram_grow, (X, C, C[0, :1], S[:1], S[:1])),
    ("`counts` has 6 bins, but must have a power", native.histogram_grow, (X[:1], C[:, :6], C[0, :1], S[:1], S[:1])),
    ("`exponent` is 129, for which", native.histogram_grow, (X[:1], C, C[0, :1] + 129, S[:1], S[:1])),
    ("`exponent` is -126, for which", native.histogram_grow, (X[:1], C, C[0, :1] - 126, S[:1], S[:1])),
    ("`low` has shape (2,), but (1,)", native.histogram_grow, (X[:1], C, C[0, :1], S, S[:1])),
    ("`candidates` is empty", native.mse_search_rows, (X, e(0), True, -8, 7, S, S)),
    ("`candidates` must be finite and above 0", native.mse_search_rows, (X, P * 0, True, -8, 7, S, S)),
    ("`candidates` must be finite and above 0", native.mse_search_rows, (X, P / 0, True, -8, 7, S, S)),
    ("must be in order, hold 0 between them", native.mse_search_rows, (X, P, True, 1, 7, S, S)),
    ("must be in order, hold 0 between them", native.mse_search_rows, (X, P, True, 0, 0, S, S)),
    ("`hi` has shape (3,), but (2,) is needed here", native.mse_search_rows, (X, P, True, -8, 7, S, e(3))),
    ("`scale_type` is 'f64'", native.minmax_quantize_rows, (X, -8, 7, "f64", 4, S, Z, B[:1].expand(3).contiguous())),
    ("`bits` is 0, but must be", native.minmax_quantize_rows, (X, -8, 7, "f32", 0, S, Z, B)),
    ("fit the codes' -128 to 127", native.minmax_quantize_rows, (X, -8, 128, "f32", 4, S, Z, B)),
    ("`qmin` and `qmax` are the same", native.minmax_quantize_rows, (X, 0, 0, "f32", 4, S, Z, B)),
    ("`out` has shape (2,), but (3,) is needed", native.minmax_quantize_rows, (X, -8, 7, "f32", 4, S, Z, B)),
    ("`zp` has shape (3,), but (2,)", native.minmax_quantize_rows, (X, -8, 7, "f32", 4, S, e(3, dtype=I32), B)),
    ("`moves` is empty", native.refine_clip_rows, (X, e(0), 3, 0.99, -8, 7, S, S)),
    ("`moves` must be finite and above 0", native.refine_clip_rows, (X, -P, 3, 0.99, -8, 7, S, S)),
    ("must be in order, hold 0 between them", native.refine_clip_rows, (X, P, 3, 0.99, 1, 7, S, S)),
    ("`lo` has shape (3,), but (2,) is needed", native.refine_clip_rows, (X, P, 3, 0.99, -8, 7, e(3), S)),
    ("`doublings` must have dtype int64", native.rebin_rows, (e(2, 8, dtype=I64), Z)),
    ("`counts` must have dtype int64", native.rebin_rows, (X, Z.long())),
    ("`levels` must be from 1", native.kl_divergences, (e(9, dtype=F64), Z.long(), Z.long(), 0, 0.1, S.double())),
    ("window 0 must lie in", native.kl_divergences, (e(9, dtype=F64), Z.long(), Z.long() + 3, 4, 0.1, S.double())),
    ("window 0 must lie in", native.kl_divergences, (e(9, dtype=F64), Z.long(), Z.long() + 10, 4, 0.1, S.double())),
    ("`stop` has shape (3,)", native.kl_divergences, (e(9, dtype=F64), Z.long(), e(3, dtype=I64), 4, 0.1, S.double())),
    ("`codes` must have dtype uint8, not int16", native.pack, (Q[0].short(), 4, B)),
    ("`bits` is 9, but must be from 1 to 8", native.pack, (Q[0], 9, B)),
    ("`out` has shape (1,), but (2,) is needed here", native.pack, (Q[0], 4, B[:1])),
    ("`bits` is 9, but must be from 1 to 8", native.unpack, (B, 9, True, e(2, dtype=I8))),
    ("`bits` is 0, but must be from 1 to 8", native.unpack, (B, 0, True, e(2, dtype=I8))),
    ("`data` has shape (2,), but (3,) is needed here", native.unpack, (B, 4, True, e(5, dtype=I8))),
    ("`data` has shape (2,), but (1,) is needed here", native.unpack, (B, 4, True, e(2, dtype=I8))),
    ("`out` must have dtype int8, not uint8", native.unpack, (B, 4, True, e(4, dtype=U8))),
    ("`out` must have dtype uint8, not int8", native.unpack, (B, 4, False, e(4, dtype=I8))),
]


@pytest.mark.parametrize(("sentence", "kernel", "arguments"), REFUSED)
def test_a_wrong_argument_is_named(sentence: str, kernel: Callable[..., None], arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        kernel(*arguments)
    assert sentence in str(caught.value)


def test_what_is_no_array_or_may_not_be_written_is_a_type_error() -> None:
    locked = np.zeros((2, 2), np.float32)
    locked.flags.writeable = False
    for x, out in ((None, e(2, 2)), ([[1.0]], e(1, 2)), (X, locked)):
        with pytest.raises(TypeError):
            native.minmax_rows(x, out)  # type: ignore[arg-type]


def test_numpy_arrays_serve_and_inputs_may_be_read_only() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    x.flags.writeable = False
    out = np.empty((2, 2), np.float32)
    native.minmax_rows(x, out)
    assert out.tolist() == [[0.0, 2.0], [3.0, 5.0]]


def test_an_array_off_its_natural_alignment_is_refused() -> None:
    x = np.frombuffer(b"x" * 25, dtype=np.float32, count=6, offset=1).reshape(2, 3)
    with pytest.raises(ValueError, match="`x` must start at a multiple of its element size"):
        native.minmax_rows(x, np.empty((2, 2), np.float32))
