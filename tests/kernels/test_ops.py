"""The custom operators: what they promise to tracing is what they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from product_cases import Activations, activations, pack, weight
from torch import Tensor
from torch.library import opcheck

from fewbit.errors import FewbitError
from fewbit.kernels import ops, products, weights
from fewbit.kernels.activations import quantize_dynamic, quantize_static
from fewbit.kernels.products import Geometry
from fewbit.kernels.weights import PackedMatrix
from fewbit.numbers.spec import QSpec

GEOMETRY = Geometry((3, 2), (2, 1), ((1, 0), (0, 2)), (1, 2), 2)
WEIGHTS = ["int8/channel/sym", "int4/g32/asym", "uint8/tensor/asym"]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def walk(geometry: Geometry) -> tuple[Any, ...]:
    before, after = [list(side) for side in zip(*geometry.padding)]
    return (
        list(geometry.kernel),
        list(geometry.stride),
        before,
        after,
        list(geometry.dilation),
        geometry.groups,
    )


# --- opcheck: schema, fake tensors, dynamic shapes ----------------------------------------------


@pytest.mark.parametrize("text", ["uint8/tensor/asym", "int8/tensor/sym", "int16/tensor/sym", "uint4/tensor/asym"])
def test_quantize_static_keeps_its_promises(text: str) -> None:
    spec = QSpec.parse(text)
    zero = None if spec.symmetric else torch.tensor(3, dtype=torch.int32)
    for x in (normal(3, 8), normal(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)):
        opcheck(ops._quantize_static, (x, torch.tensor(0.1), zero, text))


@pytest.mark.parametrize("text", ["int8/token/sym", "int8/token/asym", "int8/channel/sym", "int8/tensor/sym"])
def test_quantize_dynamic_keeps_its_promises(text: str) -> None:
    for x in (normal(3, 8), normal(2, 3, 4, 5)):
        opcheck(ops._quantize_dynamic, (x, text))


@pytest.mark.parametrize("w", WEIGHTS)
def test_linear_keeps_its_promises(w: str) -> None:
    for a, shape in (("uint8/tensor/asym", (3, 40)), ("int8/token/sym", (2, 3, 40))):
        x = activations(a, shape)
        bias = torch.ones(4) if len(shape) == 2 else None
        opcheck(ops._linear, (x.codes, x.scale, x.zero_point, *ops._flat(pack(weight(w, 4, 40))), bias))


@pytest.mark.parametrize("w", WEIGHTS)
def test_conv_keeps_its_promises(w: str) -> None:
    matrix = ops._flat(pack(weight(w, 4, 12)))
    x = activations("uint8/tensor/asym", (2, 4, 7, 6))
    opcheck(ops._conv, (x.codes, x.scale, x.zero_point, *matrix, torch.ones(4), *walk(GEOMETRY)))
    last = x.codes.contiguous(memory_format=torch.channels_last)
    opcheck(ops._conv, (last, x.scale, x.zero_point, *matrix, None, *walk(GEOMETRY)))


@pytest.mark.parametrize("text", ["int8/channel/sym", "int3/g32/asym", "nf4/g32/sym", "fp16/tensor/sym"])
def test_dequantize_keeps_its_promises(text: str) -> None:
    spec = QSpec.parse(text)
    if spec.format.is_integer:
        matrix = pack(weight(text, 4, 40))
    else:
        codes = torch.zeros(spec.granularity.padded_shape((4, 40)), dtype=spec.format.code_dtype)
        packed = codes if codes.is_floating_point() else codes.reshape(-1)[: codes.numel() // 2].clone()
        matrix = PackedMatrix(packed, torch.ones(spec.granularity.scale_shape((4, 40))), None, spec, (4, 40))
    opcheck(ops._dequantize, ops._flat(matrix))


@pytest.mark.parametrize(
    "geometry",
    [
        GEOMETRY,
        Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
        Geometry((1, 1), (3, 2), ((0, 0), (0, 0)), (1, 1), 4),
        Geometry((2, 3), (2, 3), ((2, 0), (0, 1)), (2, 1), 2),
    ],
)
def test_the_shape_of_a_convolution_is_foretold(geometry: Geometry) -> None:
    columns = 4 // geometry.groups * torch.Size(geometry.kernel).numel()
    matrix = ops._flat(pack(weight("int8/channel/sym", 4, columns)))
    for size in ((5, 7), (8, 6), (9, 9)):
        x = activations("uint8/tensor/asym", (2, 4, *size))
        arguments = (x.codes, x.scale, x.zero_point, *matrix, None, *walk(geometry))
        with torch._subclasses.FakeTensorMode() as mode:
            faked = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
            promised = ops._conv(*faked)
        result = ops._conv(*arguments)
        assert (promised.shape, promised.dtype) == (result.shape, result.dtype)
        assert promised.stride() == result.stride()


# --- the same numbers, traced or not ------------------------------------------------------------


def case(dynamic: bool, image: bool) -> tuple[Any, tuple[Tensor, ...]]:
    """A function of a float input through every operator, and the input."""
    linear, conv = pack(weight("int4/g32/asym", 4, 40)), pack(weight("int8/channel/sym", 4, 12))
    scale, zero = torch.tensor(0.02), torch.tensor(99, dtype=torch.int32)
    spec = QSpec.parse("uint8/tensor/asym" if not dynamic else "int8/channel/sym" if image else "int8/token/sym")

    def run(x: Tensor) -> Tensor:
        if dynamic:
            codes, s, z = ops.quantize_dynamic(x, spec)
        else:
            codes, s, z = ops.quantize_static(x, scale, zero, spec), scale, zero
        if image:
            return ops.conv(codes, s, z, conv, torch.ones(4), GEOMETRY)
        return ops.linear(codes, s, z, linear, None) + ops.dequantized(linear).sum()

    return run, (normal(2, 4, 7, 6) if image else normal(3, 40),)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("image", [False, True], ids=["linear", "conv"])
def test_compiled_functions_give_the_same_bits(dynamic: bool, image: bool) -> None:
    run, arguments = case(dynamic, image)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), run(*arguments))


def test_outside_of_tracing_the_functions_are_the_kernels_own() -> None:
    x = normal(3, 40)
    spec, matrix = QSpec.parse("int8/token/asym"), pack(weight("int8/channel/asym", 4, 40))
    for ours, theirs in zip(ops.quantize_dynamic(x, spec), quantize_dynamic(x, spec)):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
    static = QSpec.parse("int8/tensor/sym")
    codes = ops.quantize_static(x, torch.tensor(0.1), None, static)
    assert torch.equal(codes, quantize_static(x, torch.tensor(0.1), None, static))
    a = Activations(*quantize_dynamic(x, spec))
    result = ops.linear(a.codes, a.scale, a.zero_point, matrix, None)
    assert torch.equal(result, products.linear(a.codes, a.scale, a.zero_point, matrix, None))
    assert torch.equal(ops.dequantized(matrix), weights.dequantize(matrix))


def test_operators_return_no_view_of_their_arguments() -> None:
    """A custom operator may not alias its inputs; a matrix of one group of float32 could."""
    matrix = pack(weight("int8/channel/sym", 4, 40))
    result = ops._dequantize(*ops._flat(matrix))
    result.zero_()
    assert ops._dequantize(*ops._flat(matrix)).any()
    x = torch.zeros(1, 4)
    codes, scale, zero = ops._quantize_dynamic(x, "int8/token/sym")
    assert len({t.data_ptr() for t in (x, codes, scale, zero)}) == 4


# --- called with anything -----------------------------------------------------------------------


def test_scales_of_another_shape_are_refused() -> None:
    matrix = pack(weight("int4/g32/sym", 4, 64))
    flat = (matrix.codes, matrix.scale.reshape(-1), None, "int4/g32/sym", 4, 64)
    for call in (
        lambda: ops._dequantize(*flat),
        lambda: ops._linear_lowbit(normal(2, 64), *flat, None, "", ""),
        lambda: ops._linear(torch.ones(2, 64, dtype=torch.int8), torch.ones(()), None, *flat, None),
    ):
        with pytest.raises(FewbitError, match=r"have scales \(4, 2\), not \(8,\)"):
            call()


def test_weights_without_rows_are_refused() -> None:
    matrix = pack(weight("int4/g32/sym", 4, 64))
    with pytest.raises(FewbitError, match="-4 rows"):
        ops._dequantize(matrix.codes, matrix.scale, None, "int4/g32/sym", -4, 64)


@pytest.mark.parametrize("broken", ["stride", "groups"])
def test_a_walk_that_stands_still_is_refused(broken: str) -> None:
    matrix = pack(weight("int8/channel/sym", 4, 36))
    stride, groups = [0 if broken == "stride" else 1] * 2, 0 if broken == "groups" else 1
    x = torch.ones(1, 4, 6, 6, dtype=torch.int8)
    flat = (matrix.codes, matrix.scale, None, "int8/channel/sym", 4, 36)
    with pytest.raises(FewbitError, match="at least 1"):
        ops._conv(x, torch.ones(()), None, *flat, None, [3, 3], stride, [0, 0], [0, 0], [1, 1], groups)


def test_activations_of_one_scale_are_no_rows() -> None:
    matrix = pack(weight("int4/g32/sym", 4, 64))
    with pytest.raises(FewbitError, match="no product of activations int8/tensor/sym"):
        ops._linear_lowbit(
            normal(2, 64), matrix.codes, matrix.scale, None, "int4/g32/sym", 4, 64, None, "int8/tensor/sym", ""
        )
