"""Every way to write a call of F.linear, F.conv and F.embedding is read alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry
from fewbit.nn.intercept import pad_pairs, read_call

X, W, B = torch.ones(2, 4, 9, 9), torch.ones(6, 2, 3, 3), torch.ones(6)


def read(function: Callable[..., Any], *args: Any, kernel: tuple[int, ...] = (), **kwargs: Any) -> Any:
    return read_call(function, args, kwargs, kernel)


@pytest.mark.parametrize("function", [F.linear, torch._C._nn.linear])
def test_linear(function: Callable[..., Any]) -> None:
    for call in (
        read(function, X, W, B),
        read(function, X, W, bias=B),
        read(function, X, weight=W, bias=B),
        read(function, input=X, weight=W, bias=B),
    ):
        assert call.kind == "linear"
        assert call.x is X
        assert call.bias is B
        assert call.geometry is None
    assert read(function, X, W).bias is None


CONVS: list[tuple[tuple[Any, ...], dict[str, Any], Geometry]] = [
    ((X, W), {}, Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    ((X, W, B, 2, 1, 3, 2), {}, Geometry((3, 3), (2, 2), ((1, 1), (1, 1)), (3, 3), 2)),
    ((X, W, B, (2, 1), (0, 1), (1, 2), 2), {}, Geometry((3, 3), (2, 1), ((0, 0), (1, 1)), (1, 2), 2)),
    ((X, W), {"stride": [2], "padding": [1], "groups": 2}, Geometry((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2)),
    ((X,), {"weight": W, "padding": "same"}, Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)),
    ((), {"input": X, "weight": W, "padding": "valid"}, Geometry((3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1)),
    ((X, W, None, 1, "same", 2), {}, Geometry((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 1)),
]


@pytest.mark.parametrize("function", [F.conv2d, torch.conv2d])
@pytest.mark.parametrize(("args", "kwargs", "geometry"), CONVS)
def test_conv(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], geometry: Geometry) -> None:
    call = read(function, *args, kernel=(3, 3), **kwargs)
    assert call.kind == "conv"
    assert call.x is X
    assert call.geometry == geometry


@pytest.mark.parametrize(("function", "axes"), [(F.conv1d, 1), (torch.conv1d, 1), (F.conv3d, 3), (torch.conv3d, 3)])
def test_conv_of_other_axes(function: Callable[..., Any], axes: int) -> None:
    call = read(function, X, W, B, 2, kernel=(3,) * axes)
    assert call.geometry == Geometry((3,) * axes, (2,) * axes, ((0, 0),) * axes, (1,) * axes, 1)
    assert call.bias is B


def test_embedding() -> None:
    index = torch.tensor([1, 2])
    for call in (read(F.embedding, index, W), read(F.embedding, input=index, weight=W, padding_idx=1)):
        assert call.kind == "embedding"
        assert call.x is index


def test_an_embedding_that_changes_its_weights_is_refused() -> None:
    with pytest.raises(FewbitError, match="max_norm changes its weights as it runs; skip it with a rule"):
        read(F.embedding, torch.tensor([1]), W, None, 1.0)


@pytest.mark.parametrize("function", [torch.matmul, F.bilinear, F.conv_transpose2d, torch.Tensor.mul])
def test_other_functions_are_refused_by_name(function: Callable[..., Any]) -> None:
    with pytest.raises(FewbitError, match=f"used in {function.__name__}, which has no integer form; skip that layer"):
        read(function, X, W)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_same_padding_is_torch_s(kernel: int, dilation: int) -> None:
    x, weight = torch.randn(1, 1, 9), torch.randn(1, 1, kernel)
    ((before, after),) = pad_pairs("same", (kernel,), (dilation,))
    result: Tensor = F.conv1d(F.pad(x, (before, after)), weight, dilation=dilation)
    assert torch.allclose(result, F.conv1d(x, weight, padding="same", dilation=dilation), atol=1e-6)


def test_padding_by_numbers() -> None:
    assert pad_pairs(2, (3, 3), (1, 1)) == ((2, 2), (2, 2))
    assert pad_pairs((2,), (3, 3), (1, 1)) == ((2, 2), (2, 2))
    assert pad_pairs([1, 2], (3, 3), (1, 1)) == ((1, 1), (2, 2))
    assert pad_pairs("valid", (3, 3), (1, 1)) == ((0, 0), (0, 0))
