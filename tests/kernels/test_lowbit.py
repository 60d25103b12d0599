"""Low-bit linear layers against exact products in float64, on every instruction set, thread count and edge."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from product_cases import exact_weight, pack, weight
from torch import Tensor

import fewbit._native as native
from fewbit.errors import FewbitError
from fewbit.kernels import activations, dispatch, lowbit, ops, reference
from fewbit.kernels.weights import PackedMatrix
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

ISAS = native.available_isas()
BOUND = 1e-5  # times the sum of |x| |w|
SPECS = [
    "int4/g32/sym", "int4/g128/sym", "int4/g64/asym", "int4/channel/sym", "int4/tensor/asym", "uint4/g32/asym",
    "int8/channel/sym", "int8/g96/asym", "int8/channel/sym/narrow", "uint8/channel/asym", "uint8/g32/sym",
    "int3/g32/sym", "int3/channel/asym", "int2/g64/sym", "int2/g32/asym", "int6/g32/asym", "int1/channel/sym",
]  # fmt: skip
EDGES = [(1, 1), (1, 33), (15, 32), (16, 64), (17, 100), (31, 127), (32, 128), (33, 129), (49, 256), (40, 300)]
ROWS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine in turn."""
    native.use_isa(request.param)
    yield request.param
    native.use_isa(dispatch.forced_isa() or "")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantized(x: Tensor, spec: QSpec) -> Tensor:
    """What the activations are after quantization, in float64."""
    codes, scale, _ = activations.quantize_dynamic(x, spec)
    return spec.granularity.unblocked(
        spec.granularity.blocked(codes.double()) * spec.granularity.expand(scale.double(), x.dim()), tuple(x.shape)
    )[..., : x.shape[-1]]


def assert_close(got: Tensor, x: Tensor, w: Tensor, bias: Tensor, bound: float = BOUND) -> None:
    exact = x.double() @ w.t() + bias.double()
    size = x.double().abs() @ w.abs().t() + bias.double().abs()
    assert got.shape == exact.shape
    assert bool(((got.double() - exact).abs() <= bound * size).all())


@pytest.mark.parametrize("spec", SPECS)
def test_products_are_right_at_every_edge(isa: str, spec: str) -> None:
    for at, (rows, columns) in enumerate(EDGES):
        t = weight(spec, rows, columns, seed=at)
        matrix, w, bias = pack(t), exact_weight(t), noise(rows, seed=at + 1)
        for m in ROWS[at % 3 :: 3]:
            x = noise(m, columns, seed=m)
            assert_close(lowbit.linear_float(x, matrix, bias), x, w, bias)
            token = QSpec.parse("int8/token/sym")
            assert_close(lowbit.linear_dynamic(x, token, matrix, bias), quantized(x, token), w, bias)
            group = QSpec.parse("int8/g32/sym")
            assert_close(lowbit.linear_dynamic(x, group, matrix, bias), quantized(x, group), w, bias)


@settings(max_examples=25)
@given(
    m=st.integers(0, 40), n=st.integers(1, 70), k=st.integers(1, 400), spec=st.sampled_from(SPECS),
    bits=st.integers(2, 8), seed=st.integers(0, 99),
)  # fmt: skip
def test_products_are_right_anywhere(m: int, n: int, k: int, spec: str, bits: int, seed: int) -> None:
    t, x, bias = weight(spec, n, k, seed), noise(m, k, seed=seed), noise(n, seed=seed + 1)
    matrix, w = pack(t), exact_weight(t)
    own = t.spec.granularity
    grain = str(own) if str(own).startswith("g") else "token"
    x_spec = QSpec.parse(f"int{bits}/{grain}/sym")
    assert_close(lowbit.linear_dynamic(x, x_spec, matrix, bias), quantized(x, x_spec) if m else x, w, bias)
    assert_close(lowbit.linear_float(x, matrix, bias), x, w, bias)


@pytest.mark.parametrize("x_dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize(
    "spec", ["int4/g32/asym", "uint4/g64/sym", "int8/channel/sym", "uint8/g32/asym", "int3/g32/sym"]
)
def test_products_of_codes_are_exact_integers(isa: str, spec: str, x_dtype: torch.dtype) -> None:
    """Scales of 1: every sum is an integer that float32 holds."""
    info = torch.iinfo(x_dtype)
    for m, columns in itertools.product((1, 5, 19), (32, 100, 128)):
        t = weight(spec, 35, columns, seed=m, ones=True)
        x = torch.randint(info.min, info.max + 1, (m, columns), dtype=x_dtype)
        zero = torch.tensor([3], dtype=torch.int32)
        got = lowbit.linear_codes(x, torch.ones(1), zero, pack(t), None)
        assert torch.equal(got.double(), (x.double() - 3) @ exact_weight(t).t())


EXTREMES = [
    ("int8/channel/sym", -128), ("uint8/channel/asym", 255), ("int4/g128/sym", -8), ("uint4/g128/sym", 15),
    ("int3/g32/sym", -4), ("int2/g32/sym", -2),
]  # fmt: skip


@pytest.mark.parametrize("x_code", [-128, 127, 0, 255])
@pytest.mark.parametrize(("spec", "code"), EXTREMES)
def test_extreme_codes_do_not_saturate(isa: str, spec: str, code: int, x_code: int) -> None:
    parsed, columns = QSpec.parse(spec), 512
    scale = torch.ones(parsed.granularity.scale_shape((17, columns)))
    codes = torch.full((17, columns), code, dtype=parsed.format.code_dtype)
    zero = None if parsed.symmetric else torch.zeros_like(scale, dtype=torch.int32)
    matrix = PackedMatrix.pack(QTensor(codes, scale, zero, parsed, (17, columns)))
    x = torch.full((19, columns), x_code, dtype=torch.uint8 if x_code > 127 else torch.int8)
    for rows in (x[:1], x[:5], x):
        got = lowbit.linear_codes(rows, torch.ones(1), None, matrix, None)
        assert torch.equal(got, torch.full((len(rows), 17), float(x_code * code * columns)))


def test_the_longest_sums_do_not_overflow(isa: str) -> None:
    columns = lowbit.MAX_GROUP * 2 + 64  # cut into groups, as one sum of int32 could not hold it
    codes = torch.full((3, columns), -128, dtype=torch.int8)
    matrix = PackedMatrix.pack(QTensor(codes, torch.ones(3), None, QSpec.parse("int8/channel/sym"), (3, columns)))
    for m in (1, 17):
        x = torch.full((m, columns), -127.0)
        got = lowbit.linear_dynamic(x, QSpec.parse("int8/token/sym"), matrix, None)
        assert torch.allclose(got.double(), torch.full((m, 3), 127.0 * 128 * columns, dtype=torch.float64), rtol=1e-6)


def every_result(spec: str) -> list[Tensor]:
    t = weight(spec, 83, 320, seed=5)
    results = []
    for m in (1, 4, 13, 40):
        x = noise(m, 320, seed=m)
        results += [lowbit.linear_dynamic(x, QSpec.parse(s), pack(t), None) for s in ("int8/token/sym", "int8/g32/sym")]
    return results


@pytest.mark.parametrize("spec", ["int4/g32/asym", "int8/channel/sym", "int3/g64/sym", "int2/channel/asym"])
def test_integer_products_have_the_same_bits_on_every_instruction_set(isa: str, spec: str) -> None:
    got = every_result(spec)
    native.use_isa("portable")
    assert all(torch.equal(a, b) for a, b in zip(got, every_result(spec)))


def test_threads_change_no_bit(isa: str, threads: None) -> None:
    t = weight("int4/g64/asym", 700, 640, seed=1)
    matrix, found = pack(t), []
    rows = (1, 5, 33, 530) if isa != "portable" else (1, 5, 33)  # which is slow
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results = []
        for m in rows:
            x = noise(m, 640, seed=m)
            results += [lowbit.linear_float(x, matrix, None)] if m < 100 else []
            results += [lowbit.linear_dynamic(x, QSpec.parse("int8/g64/sym"), matrix, None)]
        found.append(results)
    assert all(torch.equal(a, b) for others in found[1:] for a, b in zip(found[0], others))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_result_has_the_dtype_of_the_input(isa: str, dtype: torch.dtype) -> None:
    t = weight("int4/g32/sym", 20, 96)
    for m in (1, 20):
        x = noise(2, m, 96).to(dtype)
        for got in (
            lowbit.linear_float(x, pack(t), noise(20)),
            lowbit.linear_dynamic(x, QSpec.parse("int8/g32/sym"), pack(t), noise(20)),
        ):
            assert got.dtype == dtype
            exact = x.double() @ exact_weight(t).t() + noise(20).double()
            assert float((got.double() - exact).abs().max()) < 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("name", lowbit.ACTIVATIONS)
def test_activation_functions(isa: str, name: str) -> None:
    t = weight("int8/channel/sym", 64, 64)
    matrix, spec = pack(t), QSpec.parse("int8/token/sym")
    for m in (2, 16):
        x = noise(m, 64) * torch.logspace(-3, 1.3, m)[:, None]
        for plain, fused in (
            (lowbit.linear_float(x, matrix, None), lowbit.linear_float(x, matrix, None, name)),
            (lowbit.linear_dynamic(x, spec, matrix, None), lowbit.linear_dynamic(x, spec, matrix, None, name)),
        ):
            exact = lowbit._activated(plain.double(), name)
            assert bool(((fused.double() - exact).abs() <= 5e-7 * (1 + plain.double().abs())).all())


@pytest.mark.parametrize("m", [1, 20])
def test_what_is_not_finite_shows_in_its_own_row_alone(isa: str, m: int) -> None:
    matrix = pack(weight("int4/g32/sym", 40, 64))
    for value in (float("nan"), float("inf")):
        x = noise(m, 64)
        x[m - 1, 40] = value
        for got in (
            lowbit.linear_float(x, matrix, None),
            lowbit.linear_dynamic(x, QSpec.parse("int8/g32/sym"), matrix, None),
        ):
            assert not bool(torch.isfinite(got[m - 1]).all())
            assert bool(torch.isfinite(got[: m - 1]).all())


def test_large_and_small_floats_survive(isa: str) -> None:
    t = weight("int8/channel/sym", 33, 64, ones=True)
    for factor in (1e-30, 1e30):
        for m in (1, 20):
            x = noise(m, 64) * factor
            got = lowbit.linear_float(x, pack(t), None)
            assert_close(got, x, exact_weight(t), torch.zeros(33))


def test_the_reference_runs_where_the_kernels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    t, x, bias = weight("int4/g64/asym", 20, 100), noise(3, 100), noise(20)
    spec = QSpec.parse("int8/g32/sym")
    fast = lowbit.linear_dynamic(x, spec, pack(t), bias, "relu"), lowbit.linear_float(x, pack(t), bias, "silu")
    monkeypatch.setenv("FEWBIT_ISA", "reference")
    slow = lowbit.linear_dynamic(x, spec, pack(t), bias, "relu"), lowbit.linear_float(x, pack(t), bias, "silu")
    for a, b in zip(fast, slow):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    double = lowbit.linear_dynamic(x.double(), spec, pack(t), bias)
    assert double.dtype == torch.float64


def test_reference_groups_by_hand() -> None:
    x, w = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6], [1, 1, 1]])
    scale, zero = torch.tensor([[1.0, 10.0], [2.0, 3.0]]), torch.tensor([[1, 2], [0, 1]])
    got = reference.linear_groups(x, torch.tensor([[1.0, 0.5]]), w, scale, zero, 2)
    assert got.tolist() == [[3 + 8 + 0.5 * 10 * 12, 2 * 3.0]]


def test_which_weights_have_a_layout() -> None:
    for spec, expected in (
        ("int4/g32/sym", True), ("int4/g16/sym", False), ("int8/channel/asym", True), ("nf4/g64/sym", False),
        ("int16/channel/sym", False), ("uint5/tensor/asym", True), ("int4/channel1/sym", False),
    ):  # fmt: skip
        assert lowbit.has_layout(pack(weight(spec, 8, 64))) is expected if not spec.startswith("nf") else True


def test_which_activations_are_fused() -> None:
    matrix = pack(weight("int4/g64/sym", 8, 64))
    for spec, expected in (
        ("int8/token/sym", True), ("int4/g32/sym", True), ("int8/token/asym", False), ("uint8/token/sym", False),
        ("int8/tensor/sym", False), ("int16/token/sym", False),
    ):  # fmt: skip
        assert lowbit.takes_dynamic(QSpec.parse(spec), matrix) is expected


def test_groups_that_do_not_divide_are_refused() -> None:
    matrix = pack(weight("int4/g64/sym", 8, 256))
    with pytest.raises(FewbitError, match="groups of 128 do not fit weights in groups of 64"):
        lowbit.linear_dynamic(noise(1, 256), QSpec.parse("int8/g128/sym"), matrix, None)
    with pytest.raises(FewbitError, match="a linear layer of 256 inputs got 255"):
        lowbit.linear_float(noise(1, 255), matrix, None)


def test_a_changed_weight_is_packed_anew() -> None:
    t = weight("int4/g32/sym", 16, 32)
    matrix, x = pack(t), noise(1, 32)
    before = lowbit.linear_float(x, matrix, None)
    matrix.scale.mul_(2)
    assert torch.allclose(lowbit.linear_float(x, matrix, None), 2 * before)


@pytest.mark.parametrize(
    ("scale", "bytes_each"), [(0.125, 2), (1e-8 * 2**0.5, 4), (float(torch.tensor(1e-20).bfloat16()), 2)]
)
def test_scales_are_kept_in_16_bits_where_nothing_is_lost(scale: float, bytes_each: int) -> None:
    t = weight("int4/g32/sym", 256, 512)
    even = QTensor(t.codes, torch.full_like(t.scale, scale), None, t.spec, t.shape)
    size = lowbit.layout_bytes(pack(even)) - 256 * 512 // 2
    assert size == 256 * 16 * bytes_each + 256 * 16  # scales, room for zero points
    x = noise(1, 512)
    assert_close(lowbit.linear_float(x, pack(even), None), x, exact_weight(even), torch.zeros(256))


def test_the_operator_is_well_formed() -> None:
    t = weight("int4/g32/asym", 12, 64)
    matrix = pack(t)
    for x_spec in ("", "int8/g32/sym"):
        arguments = (noise(2, 3, 64), *ops._flat(matrix), noise(12), x_spec, "silu")
        tests = ("test_schema", "test_faketensor")
        torch.library.opcheck(torch.ops.fewbit.linear_lowbit.default, arguments, test_utils=tests)


def test_compile_gives_what_eager_gives() -> None:
    t = weight("int4/g32/asym", 12, 64)
    matrix, x, spec = pack(t), noise(3, 64), QSpec.parse("int8/g32/sym")

    def run(v: Tensor) -> Tensor:
        return ops.linear_float(v, matrix, None, "gelu") + ops.linear_dynamic(v, spec, matrix, None)

    assert torch.equal(torch.compile(run, backend="aot_eager", fullgraph=True)(x), run(x))


REFUSED = [
    ({"group": 48}, "`group` is 48"), ({"group": 65536}, "`group` is 65536"), ({"bits": 5}, "`bits` is 5"),
    ({"codes": torch.full((4, 64), 9, dtype=torch.int8)}, "does not fit 4 bits"),
    ({"zero_point": torch.full((4, 2), -9, dtype=torch.int32)}, "does not fit 4 bits"),
    ({"scale": torch.ones(4, 3)}, "`scale` has shape (4, 3)"),
    ({"codes": torch.zeros(4, 64, dtype=torch.int16)}, "`codes` must have dtype int8 or uint8"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "sentence"), REFUSED)
def test_packing_refuses(wrong: dict[str, object], sentence: str) -> None:
    right: dict[str, object] = {
        "codes": torch.zeros(4, 64, dtype=torch.int8), "scale": torch.ones(4, 2), "zero_point": None, "group": 32,
        "bits": 4,
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        native.LowbitMatrix(**(right | wrong))  # type: ignore[arg-type]
    assert sentence in str(caught.value)


def test_calls_refuse() -> None:
    m = native.LowbitMatrix(torch.zeros(4, 64, dtype=torch.int8), torch.ones(4, 2), None, 32, 4)
    x, out, zero = noise(2, 64), torch.empty(2, 4), torch.ones(1, dtype=torch.int32)
    for sentence, call in (
        ("`x` has shape (2, 63)", lambda: m.linear_float(noise(2, 63), None, out)),
        ("`out` has shape (2, 5)", lambda: m.linear_float(x, None, torch.empty(2, 5))),
        ("`bias` has shape (3,)", lambda: m.linear_float(x, torch.ones(3), out)),
        ("`activation` is 'tanh'", lambda: m.linear_float(x, None, out, "tanh")),
        ("`qmax` is 0", lambda: m.linear_dynamic(x, 0, True, None, out)),
        ("float16", lambda: m.linear_float(x.half(), None, out)),
        ("made with `sums`", lambda: m.linear_codes(x.to(torch.int8), torch.ones(1), zero, None, out)),
        ("`scale` has 3 values", lambda: m.linear_codes(x.to(torch.int8), torch.ones(3), None, None, out)),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert sentence in str(caught.value)


def test_layers_of_many_shapes_agree_with_torch() -> None:
    """A float layer on the grid of its weights."""
    for n, k in ((5, 32), (64, 96), (130, 257)):
        t = weight("int4/g32/sym", n, k)
        x = noise(2, 3, k)
        got = lowbit.linear_float(x, pack(t), None)
        assert torch.allclose(got, F.linear(x, t.dequantize()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_inputs_of_16_bits_do_not_round_the_weights(dtype: torch.dtype, isa: str) -> None:
    t = weight("int8/channel/sym", 12, 64)
    large = QTensor(t.codes, t.scale * 1e6, None, t.spec, t.shape)
    x = torch.full((50, 64), 1e-3, dtype=dtype)
    wanted = x.double() @ exact_weight(large).double().T
    found = lowbit.linear_float(x, pack(large), None)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-2)


def test_weights_without_values_give_outputs_without_values() -> None:
    matrix, x = pack(weight("int4/g32/asym", 12, 64)), noise(3, 64)
    flat = [part.to("meta") if isinstance(part, torch.Tensor) else part for part in ops._flat(matrix)]
    assert torch.ops.fewbit.linear_lowbit(x, *flat, None, "", "").is_meta


def test_another_view_of_the_same_codes_is_another_weight() -> None:
    t = weight("int4/tensor/sym", 64, 256)
    matrix, x = pack(t), noise(3, 128)
    lowbit.linear_float(noise(3, 256), matrix, None)
    other = PackedMatrix(matrix.codes, matrix.scale, None, matrix.spec, (128, 128))
    again = QTensor(t.codes.reshape(128, 128), t.scale, None, t.spec, (128, 128))
    assert_close(lowbit.linear_float(x, other, None), x, exact_weight(again), torch.zeros(128))
