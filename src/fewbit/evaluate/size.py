"""Exact bytes of models: as they are, at other widths, and on disk.

Counted is what a file must hold: parameters and persistent buffers, each storage once, however many names it
has. A quantized layer counts as its packed codes (padding included), scales, zero points, and its float bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fewbit.evaluate.quantizers import input_spec
from fewbit.nn.swap import quantized_layers, quantized_weight


@dataclass(frozen=True)
class LayerSize:
    """One layer's share of a model.

    Attributes:
        name: Its name; ``""`` for what the model itself owns.
        kind: Its type.
        shape: Of its weight (of a quantized one: the matrix ``[out, K]``); of its largest tensor without one.
        weights: Dtype or spec of the weights.
        input: How its input is quantized, or ``"float"``.
        parameters: Values that were trained.
        values: Parameters and floating buffers.
        nbytes: Exact bytes as it is.
        fixed_bytes: Bytes of integer buffers, which have no other width.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: str
    input: str
    parameters: int
    values: int
    nbytes: int
    fixed_bytes: int

    def bytes_at(self, bits: int) -> int:
        """Bytes with every value at `bits` bits, without scales."""
        return math.ceil(self.values * bits / 8) + self.fixed_bytes


def layer_sizes(model: nn.Module) -> list[LayerSize]:
    """One entry for each module that owns tensors, in the model's order; tensors met before count as nothing.

    A module of which every tensor was met before, such as a tied output layer, has an entry of 0 bytes.
    """
    seen: set[tuple[object, ...]] = set()
    quantized = quantized_layers(model)
    inside = tuple(f"{name}." if name else "" for name in quantized)
    sizes = []
    for name, module in model.named_modules():
        if name in quantized:
            sizes.append(_quantized_size(name, module, seen))
        elif not (inside and name.startswith(inside)) and any(True for _ in _own_tensors(module)):
            sizes.append(_float_size(name, module, seen))
    return sizes


def model_bytes(module: nn.Module) -> int:
    """Exact bytes of a module and all below it."""
    seen: set[tuple[object, ...]] = set()
    return sum(_nbytes(tensor) for owner in module.modules() for tensor, _ in _new(_own_tensors(owner), seen))


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module and all below it, tied ones once; a quantized weight counts its values."""
    return sum(size.parameters for size in layer_sizes(module))


def file_bytes(path: str | Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def _float_size(name: str, module: nn.Module, seen: set[tuple[object, ...]]) -> LayerSize:
    tensors = list(_own_tensors(module))
    new = list(_new(iter(tensors), seen))
    weight = getattr(module, "weight", None)
    main = weight if isinstance(weight, Tensor) else max((t for t, _ in tensors), key=Tensor.numel)
    values = sum(t.numel() for t, _ in new if t.is_floating_point())
    return LayerSize(
        name=name,
        kind=type(module).__name__,
        shape=tuple(main.shape),
        weights=str(main.dtype).removeprefix("torch."),
        input="float",
        parameters=sum(t.numel() for t, is_parameter in new if is_parameter),
        values=values,
        nbytes=sum(_nbytes(t) for t, _ in new),
        fixed_bytes=sum(_nbytes(t) for t, _ in new if not t.is_floating_point()),
    )


def _quantized_size(name: str, layer: nn.Module, seen: set[tuple[object, ...]]) -> LayerSize:
    weight = quantized_weight(layer)
    is_new = _key(weight.packed.codes) not in seen
    nbytes = sum(_nbytes(t) for owner in layer.modules() for t, _ in _new(_own_tensors(owner), seen))
    bias = getattr(layer, "bias", None)
    count = (math.prod(weight.packed.matrix_shape) if is_new else 0) + (bias.numel() if isinstance(bias, Tensor) else 0)
    return LayerSize(
        name=name,
        kind=type(layer).__name__,
        shape=tuple(weight.packed.matrix_shape),
        weights=str(weight.packed.spec),
        input=input_spec(layer),
        parameters=count,
        values=count,
        nbytes=nbytes,
        fixed_bytes=0,
    )


def _own_tensors(module: nn.Module) -> Iterator[tuple[Tensor, bool]]:
    """What the module itself owns and a file must hold, and whether it is a parameter."""
    yield from ((p, True) for p in module._parameters.values() if p is not None)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield buffer, False


def _new(tensors: Iterator[tuple[Tensor, bool]], seen: set[tuple[object, ...]]) -> Iterator[tuple[Tensor, bool]]:
    for tensor, is_parameter in tensors:
        key = _key(tensor)
        if key not in seen:
            seen.add(key)
            yield tensor, is_parameter


def _key(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors share when they are the same memory; tensors without memory are themselves."""
    address = tensor.untyped_storage().data_ptr() if tensor.device.type != "meta" else 0
    if not address:
        return (id(tensor),)
    return (address, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
