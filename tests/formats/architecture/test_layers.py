"""Layers as JSON: each allowed class of torch.nn, fewbit's own, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewbit.formats.architecture import layers
from fewbit.formats.architecture.allowed import LAYERS
from fewbit.formats.architecture.values import Undescribable
from fewbit.nn import QuantizedWeight
from formats import samples

# Arguments for the layers whose constructors ask for some; the others are built without.
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "Linear": [{"in_features": 3, "out_features": 2}, {"in_features": 3, "out_features": 2, "bias": False}],
    "Bilinear": [{"in1_features": 2, "in2_features": 3, "out_features": 4, "bias": False}],
    **{
        f"Conv{n}d": [
            {"in_channels": 4, "out_channels": 6, "kernel_size": 3},
            {
                "in_channels": 4,
                "out_channels": 4,
                "kernel_size": (2,) * n,
                "stride": 2,
                "dilation": 3,
                "groups": 4,
                "bias": False,
            },
            {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": "same", "padding_mode": "circular"},
            {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        ]
        for n in (1, 2, 3)
    },
    **{
        f"ConvTranspose{n}d": [
            {
                "in_channels": 4,
                "out_channels": 6,
                "kernel_size": 3,
                "stride": 2,
                "padding": 1,
                "output_padding": 1,
                "groups": 2,
            },
            {"in_channels": 4, "out_channels": 6, "kernel_size": (3,) * n, "bias": False, "dilation": 2},
        ]
        for n in (1, 2, 3)
    },
    **{
        f"{kind}Norm{n}d": [
            {"num_features": 4},
            {"num_features": 4, "affine": False},
            {"num_features": 4, "affine": True, "eps": 1e-3, "momentum": None, "track_running_stats": False},
            {"num_features": 4, "track_running_stats": True},
        ]
        for kind in ("Batch", "Instance")
        for n in (1, 2, 3)
    },
    "GroupNorm": [{"num_groups": 2, "num_channels": 4}, {"num_groups": 2, "num_channels": 4, "affine": False}],
    "LayerNorm": [
        {"normalized_shape": (3, 4)},
        {"normalized_shape": 5, "bias": False},
        {"normalized_shape": [5], "elementwise_affine": False},
    ],
    "RMSNorm": [{"normalized_shape": 4}, {"normalized_shape": 4, "eps": 1e-6, "elementwise_affine": False}],
    "LocalResponseNorm": [{"size": 3}],
    "CrossMapLRN2d": [{"size": 3, "k": 2}],
    **{
        f"{kind}Pool{n}d": [{"kernel_size": 2}, {"kernel_size": (3,) * n, "stride": 1, "padding": 1}]
        for kind in ("Avg", "Max")
        for n in (1, 2, 3)
    },
    **{f"MaxUnpool{n}d": [{"kernel_size": 2}, {"kernel_size": (3,) * n, "stride": 1, "padding": 1}] for n in (1, 2, 3)},
    **{f"LPPool{n}d": [{"norm_type": 2, "kernel_size": 2, "ceil_mode": True}] for n in (1, 2, 3)},
    **{
        f"Adaptive{kind}Pool{n}d": [{"output_size": 1}, {"output_size": (2,) * n}]
        for kind in ("Avg", "Max")
        for n in (1, 2, 3)
    },
    **{
        f"{kind}Pad{n}d": [{"padding": 2}, {"padding": tuple(range(2 * n))}]
        for kind in ("Circular", "Reflection", "Replication", "Zero")
        for n in (1, 2, 3)
    },
    **{f"ConstantPad{n}d": [{"padding": 2, "value": float("-inf")}] for n in (1, 2, 3)},
    "Threshold": [{"threshold": 0.1, "value": 20.0, "inplace": True}],
    "ReLU": [{}, {"inplace": True}],
    "GELU": [{}, {"approximate": "tanh"}],
    "Softmax": [{"dim": 1}],
    "PReLU": [{}, {"num_parameters": 3, "init": 0.1}],
    "Embedding": [
        {"num_embeddings": 5, "embedding_dim": 3},
        {"num_embeddings": 5, "embedding_dim": 3, "padding_idx": -1},
    ],
    "EmbeddingBag": [{"num_embeddings": 5, "embedding_dim": 3, "mode": "sum", "include_last_offset": True}],
    "MultiheadAttention": [
        {"embed_dim": 4, "num_heads": 2, "batch_first": True},
        {
            "embed_dim": 4,
            "num_heads": 2,
            "bias": False,
            "add_bias_kv": True,
            "kdim": 3,
            "vdim": 5,
            "add_zero_attn": True,
        },
    ],
    **{
        name: [
            {"input_size": 3, "hidden_size": 4},
            {
                "input_size": 3,
                "hidden_size": 4,
                "num_layers": 2,
                "bias": False,
                "batch_first": True,
                "bidirectional": True,
                "dropout": 0.1,
            },
        ]
        for name in ("RNN", "GRU", "LSTM")
    },
    **{name: [{"input_size": 3, "hidden_size": 4, "bias": False}] for name in ("GRUCell", "LSTMCell")},
    "RNNCell": [{"input_size": 3, "hidden_size": 4, "nonlinearity": "relu"}],
    "ChannelShuffle": [{"groups": 2}],
    "PixelShuffle": [{"upscale_factor": 2}],
    "PixelUnshuffle": [{"downscale_factor": 2}],
    "Unflatten": [{"dim": 1, "unflattened_size": (2, 3)}],
    "Upsample": [{"scale_factor": 2.0, "mode": "bilinear", "align_corners": False}, {"size": (3, 4)}],
    "UpsamplingNearest2d": [{"scale_factor": 2}],
    "UpsamplingBilinear2d": [{"size": (4, 4)}],
    "Fold": [{"output_size": (4, 5), "kernel_size": 2}],
    "Unfold": [{"kernel_size": (2, 3), "stride": 2}],
}
ARGUMENTS["RNN"] = [*ARGUMENTS["RNN"], {"input_size": 3, "hidden_size": 4, "nonlinearity": "relu"}]
ARGUMENTS["LSTM"] = [*ARGUMENTS["LSTM"], {"input_size": 3, "hidden_size": 4, "proj_size": 2}]


@pytest.mark.parametrize("name", LAYERS)
def test_every_allowed_layer_comes_back(name: str) -> None:
    for arguments in ARGUMENTS.get(name, [{}]):
        layer = LAYERS[name](**arguments).eval()
        assert layers.is_layer(layer)
        built = layers.build(json.loads(json.dumps(layers.describe(layer))))
        assert type(built) is type(layer)
        assert repr(built) == repr(layer)
        assert not built.training
        assert [(k, v.shape, v.dtype) for k, v in built.state_dict().items()] == [
            (k, v.shape, v.dtype) for k, v in layer.state_dict().items()
        ]
        assert all(tensor.is_meta for tensor in built.state_dict().values())
        missing = object()
        for key, value in vars(built).items():
            if isinstance(value, int | float | str | tuple | list) and not key.startswith(("training", "_flat_weight")):
                assert vars(layer).get(key, missing) == value, key


def test_a_built_layer_computes_the_same() -> None:
    for layer, x in [
        (nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True), torch.randn(2, 5, 3)),
        (nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(2, 5, 4)),
        (nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"), torch.randn(1, 2, 5, 5)),
        (nn.BatchNorm1d(4), torch.randn(3, 4)),
    ]:
        built = layers.build(layers.describe(layer.eval()))
        built.load_state_dict(layer.state_dict(), assign=True)
        arguments = (x, x, x) if isinstance(layer, nn.MultiheadAttention) else (x,)
        with torch.no_grad():
            samples.assert_same(built(*arguments), layer(*arguments))


@pytest.mark.parametrize("recipe", ["W8A8", "W4A16-g2", "W8A8-dynamic"])
def test_fewbits_own_layers_come_back(recipe: str) -> None:
    quantized = [
        samples.quantized(lambda: nn.Linear(4, 3), (2, 4), recipe),
        samples.quantized(lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), (1, 4, 5, 5), recipe),
        samples.quantized(lambda: nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), recipe),
    ]
    for layer in quantized:
        assert layers.is_layer(layer)
        built = layers.build(json.loads(json.dumps(layers.describe(layer))))
        built.load_state_dict(layer.state_dict(), assign=True)
        assert type(built) is type(layer)
        x = torch.randn(2, 4, 5, 5) if layer is not quantized[0] else torch.randn(2, 4)
        samples.assert_same(built(x), layer(x))


def test_a_layer_of_the_users_own_class_is_known_by_its_weight() -> None:
    layer = samples.quantized(lambda: samples.PaddedConv(3, 4, 2), samples.IMAGE)
    assert layers.is_in_place(layer)
    assert not layers.is_layer(layer)
    assert layers.is_layer(layer.weight)
    described: Any = layers.describe(layer)
    assert list(described) == ["in-place"]
    assert described["in-place"]["bias"] == 4
    built = layers.build(layers.describe(layer.weight))
    assert isinstance(built, QuantizedWeight)


class Loud(nn.ReLU):
    pass


def test_a_layer_that_was_changed_is_not_described() -> None:
    for change in (
        lambda layer: setattr(layer, "_reversed_padding_repeated_twice", [1, 1, 1, 1]),
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(1))),
        lambda layer: layer.register_buffer("extra", torch.ones(1)),
        lambda layer: layer.add_module("child", nn.ReLU()),
        lambda layer: delattr(layer, "dilation"),
        lambda layer: setattr(layer, "kernel_size", object()),
    ):
        layer = nn.Conv2d(2, 2, 3)
        change(layer)
        with pytest.raises(Undescribable):
            layers.describe(layer)


def test_what_the_class_does_not_tell_makes_a_layer_unknown() -> None:
    def double(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return output * 2

    assert not layers.is_layer(Loud())
    hooked = nn.ReLU()
    hooked.register_forward_hook(double)
    assert not layers.is_layer(hooked)
    patched = nn.ReLU()
    patched.forward = torch.sigmoid  # type: ignore[method-assign]
    assert not layers.is_layer(patched)
    assert not layers.is_layer(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
    assert not layers.is_layer(nn.Sequential())


def test_an_attribute_of_someone_elses_does_no_harm() -> None:
    layer = nn.Linear(2, 2)
    layer._is_hf_initialized = True  # type: ignore[assignment]
    assert layers.describe(layer) == layers.describe(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "described",
    [
        None, 3, [], {}, "ReLU", {"nn": "ReLU"}, {"nn": "ReLU", "arguments": []}, {"nn": 3, "arguments": {}},
        {"nn": "ReLU", "arguments": {}, "more": 1}, {"nn": "Module", "arguments": {}},
        {"nn": "Sequential", "arguments": {}},
        {"nn": "modules", "arguments": {}}, {"nn": "DataParallel", "arguments": {}},
        {"nn": "__class__", "arguments": {}},
        {"nn": "ReLU", "arguments": {"device": "cuda"}}, {"nn": "ReLU", "arguments": {"__class__": 1}},
        {"nn": "Embedding", "arguments": {"num_embeddings": 2, "embedding_dim": 2, "_weight": [1]}},
        {"layer": 3}, {"layer": {}}, {"layer": {"class": "Linear"}}, {"layer": {"class": ["QuantLinear"]}},
        {"layer": {"class": "__init__"}}, {"weight": None}, {"container": "Module"}, {"in-place": {}},
    ],
    ids=str,
)  # fmt: skip
def test_other_forms_are_refused(described: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        layers.build(described)
