"""Quantized layers against float ones whose values lie on the grid: they must agree exactly."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.kernels.products import Geometry
from fewbit.nn import (
    LAYERS,
    AdaptedLinear,
    QuantConv,
    QuantConvTranspose2d,
    QuantEmbedding,
    QuantLinear,
    quantized_layers,
)
from fewbit.recipe import Recipe, Rule
from nn.samples import MODES, difference, inputs, ints, on_grid, swapped

Factory = Callable[[], nn.Module]

LINEAR: dict[str, tuple[Factory, tuple[int, ...]]] = {
    "plain": (lambda: nn.Linear(12, 5), (4, 12)),
    "no bias": (lambda: nn.Linear(12, 5, bias=False), (4, 12)),
    "one of each": (lambda: nn.Linear(1, 1), (1, 1)),
    "three axes": (lambda: nn.Linear(33, 7), (2, 3, 33)),
    "no rows": (lambda: nn.Linear(12, 5), (0, 12)),
}
CONV: dict[str, tuple[Factory, tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "1d stride, dilation, groups": (lambda: nn.Conv1d(4, 6, 3, 2, 2, 2, 2), (2, 4, 11)),
    "2d": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
    "2d no bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), (2, 3, 7, 6)),
    "2d pointwise": (lambda: nn.Conv2d(5, 4, 1), (2, 5, 3, 4)),
    "2d strides, paddings": (lambda: nn.Conv2d(3, 4, (3, 2), (2, 1), (0, 2), (1, 2)), (1, 3, 9, 8)),
    "2d depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6), (2, 6, 7, 7)),
    "2d channel multiplier": (lambda: nn.Conv2d(3, 6, 3, (1, 2), groups=3), (2, 3, 4, 4)),
    "2d groups": (lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2), (2, 6, 5, 5)),
    "2d same, even kernel": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 7, 7)),
    "2d same, dilation": (lambda: nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(3, 2)), (2, 3, 7, 7)),
    "2d valid": (lambda: nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 7, 7)),
    "2d reflect": (lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"), (2, 3, 7, 7)),
    "2d replicate": (lambda: nn.Conv2d(3, 4, 3, padding=(0, 2), padding_mode="replicate"), (2, 3, 7, 7)),
    "2d circular": (lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"), (2, 3, 7, 7)),
    "2d same, reflect": (lambda: nn.Conv2d(3, 4, 4, padding="same", padding_mode="reflect"), (2, 3, 7, 7)),
    "1d circular": (lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 7)),
    "3d": (lambda: nn.Conv3d(2, 3, (2, 3, 2), (1, 2, 1), (1, 0, 1)), (2, 2, 4, 7, 5)),
    "3d groups": (lambda: nn.Conv3d(4, 4, 2, groups=2), (1, 4, 3, 4, 5)),
    "no images": (lambda: nn.Conv2d(3, 4, 3), (0, 3, 7, 6)),
}
TRANSPOSED: dict[str, tuple[Factory, tuple[int, ...]]] = {
    "plain": (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 5, 4)),
    "no bias": (lambda: nn.ConvTranspose2d(3, 4, 2, bias=False), (2, 3, 5, 4)),
    "stride": (lambda: nn.ConvTranspose2d(3, 4, 3, 2), (2, 3, 5, 4)),
    "doubling": (lambda: nn.ConvTranspose2d(3, 4, 4, 2, 1), (2, 3, 5, 4)),
    "output padding": (lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), (2, 3, 5, 4)),
    "output padding of one axis": (
        lambda: nn.ConvTranspose2d(3, 4, (3, 2), (2, 3), (1, 0), output_padding=(0, 2)),
        (2, 3, 5, 4),
    ),
    "output padding beyond the kernel": (
        lambda: nn.ConvTranspose2d(3, 4, 1, 3, output_padding=2),
        (2, 3, 5, 4),
    ),
    "groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 4)),
    "depthwise": (lambda: nn.ConvTranspose2d(4, 4, 3, 2, 1, groups=4), (2, 4, 5, 4)),
    "dilation": (lambda: nn.ConvTranspose2d(3, 4, 3, dilation=(2, 3)), (2, 3, 5, 4)),
    "all together": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), (2, 3), (2, 1), output_padding=(1, 2), groups=2, dilation=(2, 3)),
        (2, 4, 5, 6),
    ),
    "cropped": (lambda: nn.ConvTranspose2d(3, 4, 3, 1, 3), (2, 3, 7, 8)),
    "cropped, stride": (lambda: nn.ConvTranspose2d(3, 4, 2, 2, 3, output_padding=1), (2, 3, 7, 8)),
}
EVERY = {
    f"{family} {name}": case
    for family, cases in (("linear", LINEAR), ("conv", CONV), ("transposed", TRANSPOSED))
    for name, case in cases.items()
}
ORDINARY = [name for name in EVERY if not name.endswith(("no rows", "no images"))]


def on_the_grid(name: str) -> tuple[nn.Module, Tensor]:
    factory, shape = EVERY[name]
    return on_grid(factory()), inputs(*shape)


@torch.no_grad()
def float_output(module: nn.Module, x: Tensor) -> Tensor:
    """Without rounding: float64 computes sums of dyadic numbers exactly."""
    return copy.deepcopy(module).double()(x.double()).float()


# --- agreement with the float layer -------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_on_the_grid_a_quantized_layer_equals_the_float_one(name: str, mode: str) -> None:
    module, x = on_the_grid(name)
    layer = swapped(module, mode)
    result = layer(x)
    assert result.dtype == torch.float32
    assert torch.equal(result, float_output(module, x))


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_hugging_face_s_conv1d(mode: str) -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    module, x = on_grid(pytorch_utils.Conv1D(5, 12)), inputs(2, 3, 12)
    layer = swapped(module, mode)
    assert isinstance(layer, QuantLinear)
    assert torch.equal(layer(x), float_output(module, x))


@pytest.mark.parametrize("spec", ["int4/channel/sym", "int4/g5/asym", "uint8/channel/asym", "int3/g32/sym"])
@pytest.mark.parametrize("name", ["linear plain", "conv 2d groups", "conv 3d", "transposed all together"])
@pytest.mark.parametrize("mode", ["weight-only", "static", "dynamic"])
@torch.no_grad()
def test_every_weight_spec_computes_with_its_dequantized_weights(spec: str, name: str, mode: str) -> None:
    """Weight-only is the reference here: it multiplies by the dequantized weights in float."""
    module, x = on_the_grid(name)
    assert difference(swapped(module, mode, spec)(x), swapped(module, "weight-only", spec)(x)) < 1e-6


@pytest.mark.parametrize("name", [n for n in ORDINARY if n.startswith(("conv", "transposed"))])
@pytest.mark.parametrize("mode", ["weight-only", "static", "dynamic"])
@torch.no_grad()
def test_an_image_without_a_batch(name: str, mode: str) -> None:
    module, x = on_the_grid(name)
    layer = swapped(module, mode)
    result = layer(x[0])
    assert torch.equal(result, float_output(module, x[:1])[0])
    assert result.shape == module(x[0]).shape


@pytest.mark.parametrize("name", ["linear plain", "conv 2d", "conv 1d", "transposed doubling"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_the_dtype_of_the_input_is_kept(name: str, mode: str, dtype: torch.dtype) -> None:
    module, x = on_the_grid(name)
    layer = swapped(module, mode)
    x = (x * 8).round().clamp(-100, 100).to(dtype)  # few bits: exact in every dtype
    result = layer(x)
    assert result.dtype == dtype
    wanted = layer(x.float())
    if mode == "weight-only":
        assert difference(result, wanted) < 2e-2
    else:
        assert torch.equal(result, wanted.to(dtype))


@pytest.mark.parametrize("name", ["linear plain", "conv 2d", "conv 2d reflect", "transposed doubling"])
@torch.no_grad()
def test_the_argument_is_called_as_in_torch(name: str) -> None:
    module, x = on_the_grid(name)
    assert torch.equal(swapped(module, "static")(input=x), float_output(module, x))


def test_channels_last_images_give_the_same() -> None:
    module, x = on_the_grid("conv 2d groups")
    for mode in MODES:
        layer = swapped(module, mode)
        assert torch.equal(layer(x.contiguous(memory_format=torch.channels_last)), float_output(module, x))


def test_a_weight_only_layer_passes_gradients_on_to_its_input() -> None:
    module, x = on_the_grid("conv 2d")
    x.requires_grad_()
    swapped(module, "weight-only")(x).sum().backward()
    wanted = torch.autograd.grad(module(x).sum(), x)[0]
    assert x.grad is not None
    assert difference(x.grad, wanted) < 1e-6


def test_a_transposed_convolution_takes_no_output_size() -> None:
    module, x = on_the_grid("transposed stride")
    with pytest.raises(FewbitError, match="set output_padding on the float layer"):
        swapped(module, "static")(x, output_size=(11, 9))


def test_layers_have_no_gradient_and_no_parameters() -> None:
    for name in ("linear plain", "conv 2d", "transposed plain"):
        assert not list(swapped(on_the_grid(name)[0], "static").parameters())


# --- embeddings ---------------------------------------------------------------------------------

TABLES = [
    *(f"int{bits}/channel/sym" for bits in range(1, 9)),
    *(f"uint{bits}/channel/asym" for bits in (2, 3, 4, 8)),
    "int3/g32/asym", "int3/g8/sym", "uint4/g32/asym", "int4/g16/asym", "int5/g7/asym",
    "int8/tensor/sym", "int4/tensor/asym", "int8/token/sym", "int16/channel/sym", "uint16/channel/asym",
    "nf4/g32/sym", "nf4/channel/asym", "fp8_e4m3/channel/sym", "fp8_e5m2/g8/asym", "fp4_e2m1/g32/sym",
    "int4/g32/asym/f16", "fp16/channel/sym", "ternary/channel/sym", "binary/channel/sym",
]  # fmt: skip


@pytest.mark.parametrize("spec", TABLES)
@pytest.mark.parametrize("features", [40, 37])
def test_an_embedding_looks_up_dequantized_rows(spec: str, features: int) -> None:
    layer = swapped(nn.Embedding(11, features), "weight-only", spec)
    assert isinstance(layer, QuantEmbedding)
    table = layer.weight_qtensor().dequantize()
    for index in (torch.tensor(3), torch.tensor([0, 10, 10, 5]), torch.tensor([[1, 2], [3, 10]])):
        assert torch.equal(layer(index), table[index])
    assert torch.equal(layer(torch.arange(11)), table)


def test_a_square_table_with_scales_for_columns_is_not_taken_by_rows() -> None:
    layer = swapped(nn.Embedding(8, 8), "weight-only", "int8/channel1/sym")
    index = torch.tensor([1, 5, 1])
    assert torch.equal(layer(index), layer.weight_qtensor().dequantize()[index])


@pytest.mark.parametrize("spec", ["int8/channel/sym", "int4/g32/asym", "int3/channel/sym", "nf4/g32/sym"])
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_an_embedding_of_nothing(spec: str, shape: tuple[int, ...]) -> None:
    layer = swapped(nn.Embedding(11, 40), "weight-only", spec)
    assert layer(torch.zeros(shape, dtype=torch.int64)).shape == (*shape, 40)


@pytest.mark.parametrize("spec", ["int8/channel/sym", "int3/channel/sym"])
@pytest.mark.parametrize("index", [-1, 11])
def test_an_index_outside_of_the_table_is_refused_as_torch_does(spec: str, index: int) -> None:
    module = nn.Embedding(11, 37)
    with pytest.raises((IndexError, RuntimeError)):
        module(torch.tensor([index]))
    with pytest.raises((IndexError, RuntimeError)):
        swapped(module, "weight-only", spec)(torch.tensor([index]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spec", ["int8/channel/sym", "int3/channel/sym"])
def test_an_embedding_keeps_the_float_table_s_dtype(dtype: torch.dtype, spec: str) -> None:
    layer = swapped(nn.Embedding(11, 37).to(dtype), "weight-only", spec)
    index = torch.tensor([3, 4])
    assert layer(index).dtype == dtype
    assert torch.equal(layer(index), layer.weight_qtensor().dequantize()[index].to(dtype))


def test_the_row_of_the_padding_index_stays_zero() -> None:
    layer = swapped(nn.Embedding(11, 40, padding_idx=2), "weight-only", "int4/g32/asym")
    assert not layer(torch.tensor([2])).any()


@pytest.mark.parametrize("index", [torch.tensor([3, 1], dtype=torch.int32), torch.tensor([3, 1], dtype=torch.int64)])
def test_indices_of_both_widths(index: Tensor) -> None:
    layer = swapped(nn.Embedding(11, 40), "weight-only")
    assert torch.equal(layer(index), layer.weight_qtensor().dequantize()[index.long()])


# --- config and state ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*ORDINARY, "embedding"])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_config_and_state_make_the_layer_again(name: str, mode: str) -> None:
    if name == "embedding":
        module, x = nn.Embedding(11, 40), torch.tensor([[1, 2], [10, 0]])
        mode = "weight-only"
    else:
        module, x = on_the_grid(name)
    for spec in ("int8/channel/sym", "int3/g5/asym"):
        layer = swapped(module, mode, spec)
        config = json.loads(json.dumps(layer.config()))  # type: ignore[operator]
        again = LAYERS[config["class"]].from_config(config)
        assert type(again) is type(layer)
        again.load_state_dict(layer.state_dict())
        assert again.config() == config
        assert torch.equal(again(x), layer(x))


@torch.no_grad()
def test_an_adapter_beside_the_codes_adds_its_product_and_is_made_again() -> None:
    module, x = nn.Linear(24, 10), torch.randn(5, 24)
    base = swapped(module, "dynamic")
    down, up = torch.randn(3, 24), torch.randn(10, 3)
    layer = AdaptedLinear(base.weight, base.bias, down, up, 0.5)  # type: ignore[arg-type]
    assert torch.allclose(layer(x) - base(x), 0.5 * x @ (up @ down).T, atol=1e-3)
    again = LAYERS["AdaptedLinear"].from_config(json.loads(json.dumps(layer.config())))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


@pytest.mark.parametrize("spec", TABLES)
def test_an_empty_layer_has_the_buffers_of_a_full_one(spec: str) -> None:
    layer = swapped(nn.Embedding(11, 37), "weight-only", spec)
    again = QuantEmbedding.from_config(json.loads(json.dumps(layer.config())))  # type: ignore[operator]
    full, empty = layer.state_dict(), again.state_dict()
    assert list(full) == list(empty)
    for key, tensor in full.items():
        assert (empty[key].shape, empty[key].dtype) == (tensor.shape, tensor.dtype), key


def test_the_state_says_what_it_holds() -> None:
    layer = swapped(on_the_grid("conv 2d")[0], "static", "int8/channel/asym")
    assert set(layer.state_dict()) == {
        "bias",
        "weight.packed.codes",
        "weight.packed.scale",
        "weight.packed.zero_point",
        "weight.input_quantizer.scale",
        "weight.input_quantizer.zero_point",
    }


def test_every_layer_class_is_found_by_its_name() -> None:
    classes = (QuantLinear, AdaptedLinear, QuantConv, QuantConvTranspose2d, QuantEmbedding)
    assert {c.__name__: c for c in classes} == LAYERS


def test_a_layer_prints_its_spec_and_shape() -> None:
    text = repr(swapped(on_the_grid("conv 2d groups")[0], "static"))
    assert "int8/channel/sym, shape=(4, 27)" in text
    assert "uint8/tensor/asym" in text


def test_geometry_is_kept_as_it_is() -> None:
    layer = swapped(nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), groups=2), "static")
    assert isinstance(layer, QuantConv)
    assert layer.geometry == Geometry((3, 2), (2, 1), ((1, 1), (0, 0)), (1, 2), 2)


# --- inside of torch's own modules --------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["W8A8-dynamic", "W8A16", "W8A8", "W4A16-g32"])
@pytest.mark.parametrize("stacked", [False, True], ids=["layer", "stack"])
def test_a_transformer_encoder_runs_without_its_fast_path(scheme: str, stacked: bool) -> None:
    """In evaluation mode torch reads ``linear1.weight`` and runs a fused kernel, unless the weight tells it not to."""
    module: nn.Module = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    if stacked:
        module = nn.TransformerEncoder(module, 2).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 5, 32)
    quantized = fewbit.quantize(module, scheme, [x])
    assert len(quantized_layers(quantized)) == (4 if stacked else 2)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    limit = 0.15 if scheme == "W4A16-g32" else 0.02
    with torch.no_grad():
        wanted, masked = module(x), module(x, src_key_padding_mask=mask)
        assert 0 < difference(quantized(x), wanted) < limit
        assert difference(quantized(x, src_key_padding_mask=mask)[~mask], masked[~mask]) < limit
    with torch.inference_mode():
        assert difference(quantized(x), wanted) < limit
        assert difference(quantized(x, src_key_padding_mask=mask)[~mask], masked[~mask]) < limit
    assert difference(quantized(x).detach(), wanted) < limit


def test_the_projection_that_attention_uses_without_calling_it_stays_float() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x)[0])  # type: ignore[no-any-return]

    model, x = Attending().eval(), torch.randn(2, 5, 32)
    quantized = fewbit.quantize(model, "W8A8", [x])
    assert list(quantized_layers(quantized)) == ["head"]
    assert type(quantized.get_submodule("attention.out_proj")) is type(model.attention.out_proj)
    with torch.no_grad():
        assert difference(quantized(x), model(x)) < 0.02


# --- export and compilation ---------------------------------------------------------------------


class Everything(nn.Module):
    """Static, dynamic and weight-only layers of each kind one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 6)
        self.static_conv = nn.Conv2d(6, 8, 3, padding="same")
        self.dynamic_conv = nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect")
        self.float_conv = nn.Conv2d(8, 4, 2, padding="same")
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1)
        self.static_linear, self.dynamic_linear = nn.Linear(4, 12), nn.Linear(12, 33)
        self.float_linear = nn.Linear(33, 3)

    def forward(self, index: Tensor) -> Tensor:
        x = self.embedding(index).permute(0, 3, 1, 2)
        x = self.up(self.float_conv(self.dynamic_conv(self.static_conv(x)).relu()))
        x = self.dynamic_linear(self.static_linear(x.mean((2, 3))))
        result: Tensor = self.float_linear(x.relu())
        return result


def everything() -> tuple[nn.Module, Tensor]:
    rules = (
        Rule("dynamic*", scheme="W8A8-dynamic"),
        Rule("float*", scheme="W4A16-g32"),
        Rule("embedding", weights="int4/channel/asym"),
    )
    index = torch.randint(0, 16, (3, 5, 6))
    model = fewbit.quantize(Everything(), Recipe("W8A8", rules=rules), [index])
    assert len(quantized_layers(model)) == 8
    return model, index


@torch.no_grad()
def test_export_with_a_dynamic_batch() -> None:
    model, index = everything()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (index,), dynamic_shapes=(batch,))
    names = {str(node.target) for node in program.graph.nodes if "fewbit" in str(node.target)}
    assert {name.split(".")[1] for name in names} == {
        "quantize_static", "quantize_dynamic", "linear", "linear_lowbit", "conv", "dequantize",
    }  # fmt: skip
    for size in (1, 3, 8):
        index = torch.randint(0, 16, (size, 5, 6))
        # Convolutions come out in another memory order, so that sums behind them may round another way.
        assert difference(program.module()(index), model(index)) < 5e-3


@torch.no_grad()
def test_compile_in_one_graph() -> None:
    model, index = everything()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    assert difference(compiled(index), model(index)) < 5e-3


def test_ints_are_on_the_grid() -> None:
    """The oracle itself: a float layer on the grid is exact in float32."""
    module, x = on_the_grid("linear three axes")
    assert torch.equal(module(x), float_output(module, x))
    assert ints(50, 50).abs().max() <= 127
