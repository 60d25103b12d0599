"""Which layers can be quantized, and their weights as matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fewbit.kernels.products import Geometry
from fewbit.nn import kinds
from nn.samples import HalvedLinear, SameConv2d, ScaledEmbedding


class Scaled(nn.Linear):
    """A subclass that changes nothing but its construction."""

    def __init__(self) -> None:
        super().__init__(3, 4)


KINDS = [
    (lambda: nn.Linear(3, 4), "Linear"),
    (lambda: Scaled(), "Linear"),
    (lambda: HalvedLinear(3, 4), "Linear"),
    (lambda: nn.Conv1d(3, 4, 2), "Conv1d"),
    (lambda: nn.Conv2d(3, 4, 2), "Conv2d"),
    (lambda: SameConv2d(3, 4, 2), "Conv2d"),
    (lambda: nn.Conv3d(3, 4, 2), "Conv3d"),
    (lambda: nn.ConvTranspose2d(3, 4, 2), "ConvTranspose2d"),
    (lambda: nn.Embedding(3, 4), "Embedding"),
    (lambda: ScaledEmbedding(3, 4), "Embedding"),
    (lambda: nn.Embedding(3, 4, max_norm=1.0), None),
    (lambda: nn.MultiheadAttention(4, 2).out_proj, None),
    (lambda: nn.MultiheadAttention(4, 2), None),
    (lambda: nn.ConvTranspose1d(3, 4, 2), None),
    (lambda: nn.ConvTranspose3d(3, 4, 2), None),
    (lambda: nn.EmbeddingBag(3, 4), None),
    (lambda: nn.Bilinear(3, 4, 2), None),
    (lambda: nn.LayerNorm(3), None),
    (lambda: nn.BatchNorm2d(3), None),
    (lambda: nn.LSTM(3, 4), None),
    (lambda: parametrizations.weight_norm(nn.Linear(3, 4)), None),
    (lambda: nn.ReLU(), None),
]


@pytest.mark.parametrize(("factory", "wanted"), KINDS)
def test_kind(factory: object, wanted: str | None) -> None:
    assert kinds.kind(factory()) == wanted  # type: ignore[operator]


def test_hugging_face_s_conv1d_is_a_kind_and_others_of_that_name_are_not() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")

    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

    assert kinds.kind(pytorch_utils.Conv1D(4, 3)) == "Conv1D"
    assert kinds.kind(Conv1D()) is None


def test_a_quantized_layer_is_no_float_one() -> None:
    import fewbit

    assert kinds.kind(fewbit.quantize(nn.Linear(3, 4), "W8A16")) is None


def test_own_forward() -> None:
    assert not kinds.has_own_forward(nn.Conv2d(3, 4, 2))
    assert not kinds.has_own_forward(Scaled())
    assert kinds.has_own_forward(SameConv2d(3, 4, 2))
    assert kinds.has_own_forward(ScaledEmbedding(3, 4))
    assert not kinds.has_own_forward(nn.ReLU())


def test_quantizable_names_each_module_once_in_order() -> None:
    linear = nn.Linear(3, 3)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), linear, nn.Sequential(linear, nn.Embedding(2, 3)))
    found = [(name, kind) for name, _, kind in kinds.quantizable(model)]
    assert found == [("0", "Conv2d"), ("2", "Linear"), ("3.1", "Embedding")]
    assert [name for name, _, _ in kinds.quantizable(linear)] == [""]


# --- weights as matrices ------------------------------------------------------------------------


def test_a_weight_matrix_has_the_output_channels_for_rows() -> None:
    linear, conv = nn.Linear(3, 4), nn.Conv2d(4, 6, (2, 3), groups=2)
    assert torch.equal(kinds.weight_matrix(linear), linear.weight)
    assert torch.equal(kinds.weight_matrix(conv), conv.weight.reshape(6, 12))
    assert kinds.weight_matrix(conv.half()).dtype == torch.float32
    assert not kinds.weight_matrix(linear).requires_grad


def test_the_weight_of_hugging_face_s_conv1d_is_turned() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    module, x = pytorch_utils.Conv1D(5, 3), torch.randn(2, 3)
    matrix = kinds.weight_matrix(module)
    assert matrix.shape == (5, 3)
    assert matrix.is_contiguous()
    assert torch.allclose(F.linear(x, matrix, module.bias), module(x))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize(
    ("padding", "extra", "dilation"), [((0, 0), (0, 0), (1, 1)), ((1, 0), (1, 1), (2, 2)), ((3, 4), (0, 1), (1, 2))]
)
def test_a_transposed_convolution_is_a_convolution_of_the_spread_input(
    groups: int, stride: tuple[int, int], padding: tuple[int, int], extra: tuple[int, int], dilation: tuple[int, int]
) -> None:
    extra = tuple(min(e, max(s, d) - 1) for e, s, d in zip(extra, stride, dilation))  # type: ignore[assignment]
    module = nn.ConvTranspose2d(4, 6, (3, 2), stride, padding, extra, groups, dilation=dilation)
    x = torch.randn(2, 4, 8, 9)
    spread = torch.zeros(2, 4, 7 * stride[0] + 1, 8 * stride[1] + 1)
    spread[:, :, :: stride[0], :: stride[1]] = x
    geometry = kinds.transposed_geometry(module)
    padded = F.pad(spread, [side for pair in reversed(geometry.padding) for side in pair])
    kernel = kinds.weight_matrix(module).reshape(6, 4 // groups, 3, 2)
    result = F.conv2d(padded, kernel, module.bias, 1, 0, geometry.dilation, geometry.groups)
    assert torch.allclose(result, module(x), atol=1e-5)
    assert geometry.stride == (1, 1)


def test_kernel_shapes() -> None:
    assert kinds.kernel_shape(nn.Conv1d(3, 4, 5)) == (5,)
    assert kinds.kernel_shape(nn.Conv3d(3, 4, (1, 2, 3))) == (1, 2, 3)
    assert kinds.kernel_shape(nn.ConvTranspose2d(3, 4, (2, 3))) == (2, 3)
    assert kinds.kernel_shape(nn.Linear(3, 4)) == ()
    assert kinds.kernel_shape(nn.Embedding(3, 4)) == ()
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    assert kinds.kernel_shape(pytorch_utils.Conv1D(3, 4)) == ()


@pytest.mark.parametrize(
    ("module", "padding"),
    [
        (nn.Conv2d(3, 4, 3, padding=(2, 1)), ((2, 2), (1, 1))),
        (nn.Conv2d(3, 4, 3, padding="valid"), ((0, 0), (0, 0))),
        (nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)), ((1, 2), (2, 2))),
        (nn.Conv1d(3, 4, 2, padding="same"), ((0, 1),)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), ((0, 0), (0, 0))),
    ],
)
def test_the_padding_of_a_convolution(module: nn.Module, padding: tuple[tuple[int, int], ...]) -> None:
    assert kinds.conv_geometry(module).padding == padding


def test_the_geometry_of_a_convolution() -> None:
    module = nn.Conv3d(4, 6, (1, 2, 3), (3, 2, 1), (0, 1, 2), (1, 2, 3), 2)
    wanted = Geometry((1, 2, 3), (3, 2, 1), ((0, 0), (1, 1), (2, 2)), (1, 2, 3), 2)
    assert kinds.conv_geometry(module) == wanted


def test_a_mean_patch_times_the_matrix_is_a_mean_output() -> None:
    """What bias correction relies on: rows of the matrix meet the input's channels in the order of im2col."""
    module = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    x: Tensor = torch.randn(1, 4, 3, 3)
    patches = x.reshape(2, 18)
    by_group = torch.einsum("gok,gk->go", kinds.weight_matrix(module).reshape(2, 3, 18), patches)
    assert torch.allclose(by_group.reshape(-1), module(x).reshape(-1), atol=1e-5)
