"""Layers in training: float parameters under their own names, fake-quantized on the way into the product.

A layer in training is the user's own layer with a class that derives from its own, so that ``isinstance``, attributes,
hooks and ties go on working. In training mode it computes in float on fake-quantized values. In evaluation mode it runs
the quantized layer that :func:`~fewbit.train.conversion.convert` makes, integers and all; so what is evaluated is what
will be deployed, to the last code.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewbit.kernels.weights import PackedMatrix
from fewbit.nn import kinds
from fewbit.nn.quantizers import DynamicQuantizer, InputQuantizer, StaticQuantizer
from fewbit.nn.statistics import dynamic_spec
from fewbit.nn.swap import swap_layer
from fewbit.nn.weight import PackedWeight, QuantizedWeight
from fewbit.numbers import affine
from fewbit.numbers.qtensor import QTensor
from fewbit.recipe import LayerPlan
from fewbit.train.dynamic import DynamicFake
from fewbit.train.fingerprint import fingerprint
from fewbit.train.forwards import WithWeight, forward_with
from fewbit.train.gradient import substitute
from fewbit.train.norm import FoldedNorm, by_channel
from fewbit.train.quantizer import FakeQuantizer

_EXTRA = ("weight_quantizer", "input_quantizer", "folded_norm")


class TrainedLayer(nn.Module):
    """What layers in training share; always mixed with the float layer's class.

    Attributes:
        plan: What the recipe decided.
        weight_quantizer: For the weight as a matrix ``[out, K]``, the folded batch norm in it.
        input_quantizer: Static, dynamic, or None for float inputs.
        folded_norm: The batch norm behind the layer, or None.
    """

    fewbit_in_training = True
    plan: LayerPlan
    weight: nn.Parameter
    bias: nn.Parameter | None
    weight_quantizer: FakeQuantizer
    input_quantizer: FakeQuantizer | DynamicFake | None
    folded_norm: FoldedNorm | None
    _float_class: type[nn.Module]
    _own_forward: bool

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the float layer's."""
        if self.training:
            return self._simulated(args, kwargs)
        exact = self._deployed(args, kwargs)
        trained = torch.is_grad_enabled() and any(
            t.requires_grad for t in [*args, *kwargs.values(), *self.parameters()] if isinstance(t, Tensor)
        )
        return substitute(self._simulated(args, kwargs), exact) if trained else exact

    def _simulated(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if self.folded_norm is None:
            return self._product(args, kwargs)
        return cast(Tensor, self.folded_norm(self.bias, functools.partial(self._product, args, kwargs)))

    def _product(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], factor: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The layer on fake-quantized values; with a folded norm's factor ``[out]`` and bias in place of its own."""
        matrix = kinds.as_matrix(self, self.weight).to(torch.float32)
        if factor is not None:
            matrix = matrix * factor.to(torch.float32)[:, None]
        weight = kinds.from_matrix(self, self.weight_quantizer(matrix)).to(self.weight.dtype)
        quantize = self.input_quantizer
        if self._own_forward:
            kernel = kinds.kernel_shape(self)
            with WithWeight(self.weight, weight, quantize, kernel), _zero_bias(self, factor is not None):
                result = cast(Tensor, self._float_class.forward(self, *args, **kwargs))
            return result if bias is None else result + by_channel(bias, result)
        if quantize is not None and self.plan.kind != "Embedding":
            args, kwargs = _with_input(args, kwargs, quantize)
        bias = self._parameters.get("bias") if factor is None else bias
        return forward_with(self, args, kwargs, weight, None if bias is None else bias.to(weight.dtype))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()  # a product that will be differentiated may be computed in another order
    def _deployed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        state = fingerprint([*self.parameters(), *self.buffers(), *self.weight_quantizer.parameters()])
        known = self.__dict__.get("_deployed_as")
        if known is None or known[0] != state:
            known = state, deployed_layer(self)
            self.__dict__["_deployed_as"] = known
        return cast(Tensor, known[1](*args, **kwargs))

    def train(self, mode: bool = True) -> Any:
        """Also forgets the quantized layer of the last evaluation."""
        self.__dict__.pop("_deployed_as", None)
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_deployed_as"}


@contextmanager
def _zero_bias(layer: nn.Module, wanted: bool) -> Iterator[None]:
    """While the context lasts the layer's bias is 0: one that is part of a folded norm comes later."""
    bias = layer._parameters.get("bias")
    if bias is None or not wanted:
        yield
        return
    layer._parameters["bias"] = nn.Parameter(torch.zeros_like(bias), requires_grad=False)
    try:
        yield
    finally:
        layer._parameters["bias"] = bias


def _with_input(args: tuple[Any, ...], kwargs: dict[str, Any], quantize: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (quantize(args[0]), *args[1:]), kwargs
    key = next(iter(kwargs))
    return args, {**kwargs, key: quantize(kwargs[key])}


@functools.cache
def trained_class(float_class: type[nn.Module]) -> type[TrainedLayer]:
    """The class of layers of ``float_class`` in training."""
    name = f"Trained{float_class.__name__}"
    members = {
        "_float_class": float_class,
        "_own_forward": kinds.class_has_own_forward(float_class),
        "__module__": __name__,
        "__doc__": f"A {float_class.__name__} in training.",
    }
    return cast("type[TrainedLayer]", type(name, (TrainedLayer, float_class), members))


# Under their names, so that they can be pickled.
TrainedLinear, TrainedEmbedding = trained_class(nn.Linear), trained_class(nn.Embedding)
TrainedConv1d, TrainedConv2d, TrainedConv3d = (trained_class(c) for c in (nn.Conv1d, nn.Conv2d, nn.Conv3d))
TrainedConvTranspose2d = trained_class(nn.ConvTranspose2d)


def trained_layers(model: nn.Module) -> dict[str, TrainedLayer]:
    """Names and modules of the layers in training."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TrainedLayer)}


def float_matrix(layer: TrainedLayer) -> tuple[Tensor, Tensor | None]:
    """The trained weight as float32 ``[out, K]`` and the bias as float32 ``[out]``, a batch norm folded into both."""
    matrix = kinds.weight_matrix(layer)
    bias = layer._parameters.get("bias")
    if layer.folded_norm is None:
        return matrix, None if bias is None else bias.detach().float().clone()
    factor, shift = layer.folded_norm.folded(bias)
    return (matrix.double() * factor[:, None]).to(torch.float32), shift.to(torch.float32)


def quantized_parts(layer: TrainedLayer) -> tuple[Tensor, QTensor, InputQuantizer | None]:
    """The float matrix, its codes, and the input quantizer as deployed."""
    matrix, _ = float_matrix(layer)
    scale, zero_point = layer.weight_quantizer.deployed(matrix)
    codes = affine.quantize(
        matrix, layer.weight_quantizer.spec, scale=scale, zero_point=zero_point, name=layer.weight_quantizer.name
    )
    return matrix, codes, _deployed_input(layer)


def _deployed_input(layer: TrainedLayer) -> InputQuantizer | None:
    quantizer = layer.input_quantizer
    if quantizer is None:
        return None
    if isinstance(quantizer, DynamicFake):
        return DynamicQuantizer(dynamic_spec(quantizer.spec, layer.plan.kind))
    scale, zero_point = quantizer.deployed(torch.empty(0))
    return StaticQuantizer(quantizer.spec, scale.clone(), zero_point)


def float_layer(layer: TrainedLayer, hooks: bool) -> nn.Module:
    """The float layer with its trained weights, batch norm folded in; shares nothing that would change the layer.

    Args:
        layer: In training; left as it is.
        hooks: Whether the user's hooks come along.
    """
    matrix, bias = float_matrix(layer)
    clone = object.__new__(layer._float_class)
    clone.__dict__.update({key: value for key, value in layer.__getstate__().items() if key != "plan"})
    for key in ("_parameters", "_buffers", "_modules"):
        clone.__dict__[key] = dict(layer.__dict__[key])
    if not hooks:
        clone.__dict__.update({key: OrderedDict() for key in layer.__dict__ if key.endswith("_hooks")})
    for key in _EXTRA:
        clone._modules.pop(key, None)
        clone.__dict__.pop(key, None)
    weight = kinds.from_matrix(layer, matrix).to(layer.weight.dtype).contiguous()
    clone._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        clone._parameters["bias"] = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    clone.training = False
    return clone


def deployed_layer(layer: TrainedLayer) -> nn.Module:
    """The quantized layer that conversion makes of a layer in training."""
    matrix, codes, quantizer = quantized_parts(layer)
    packed = PackedWeight(PackedMatrix.pack(codes)).to(matrix.device)
    weight = QuantizedWeight(packed, quantizer, kinds.kernel_shape(layer)).to(matrix.device)
    bias = float_matrix(layer)[1] if layer.plan.kind != "Embedding" else None
    if bias is not None:  # a converted layer's bias has the model's dtype
        bias = bias.to(layer.weight.dtype).to(torch.float32)
    return swap_layer(float_layer(layer, hooks=False), "", weight, bias).eval()
