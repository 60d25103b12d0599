"""``model.safetensors``: a model's tensors, each stored once.

safetensors holds contiguous tensors and refuses two that share memory. So a tensor that has several names is
stored under the first and the others are listed as its aliases; one that is dense but not in C order
(channels last, a transpose) is stored permuted into C order and its order of dimensions is listed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewbit.errors import FewbitError

NAME = "model.safetensors"


@dataclass(frozen=True)
class Stored:
    """Tensors as they lie in a file.

    Attributes:
        tensors: Contiguous CPU tensors by name, no two sharing memory. Empty when only the two tables below
            are of interest.
        aliases: Further name to the name under which the tensor is stored.
        orders: Name to the order of dimensions (slowest first) of a stored tensor that is not in C order.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    orders: dict[str, list[int]] = field(default_factory=dict)


def collect(model: nn.Module, constants: Mapping[str, Tensor]) -> Stored:
    """Collect the state dict of a model, and some more tensors, as they are to be stored.

    Args:
        model: The model; its tensors may be of any type that safetensors knows and on any device.
        constants: Tensors that belong to the model but not to its state dict.

    Raises:
        FewbitError: A tensor, named, is not one that can be stored.
    """
    stored = Stored()
    names: dict[tuple[object, ...], str] = {}
    taken: set[int] = set()
    for name, tensor in {**model.state_dict(keep_vars=True), **constants}.items():
        if not isinstance(tensor, Tensor):
            raise FewbitError(f"the model keeps {name}, which is not a tensor: it cannot be saved")
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            raise FewbitError(f"the tensor {name} cannot be saved: it must be a dense tensor that holds data")
        plain = tensor.detach().resolve_conj().resolve_neg()
        earlier = names.setdefault(_identity(tensor), name)
        if earlier != name:
            stored.aliases[name] = earlier
            continue
        order = _order(plain)
        if order != sorted(order):
            stored.orders[name] = order
            plain = plain.permute(order)
        stored.tensors[name] = _own_memory(plain.cpu(), taken)
    return stored


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors that are the same memory seen the same way."""
    if tensor.numel() == 0:
        return (id(tensor),)
    flags = (tensor.is_conj(), tensor.is_neg(), tensor.dtype, tensor.device)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), flags)


def _order(tensor: Tensor) -> list[int]:
    """The dimensions from slowest to fastest, if the tensor is dense in that order; else as they are."""
    plain = list(range(tensor.dim()))
    strides = tensor.stride()
    order = sorted(plain, key=lambda d: (-strides[d], d))
    return order if tensor.permute(order).is_contiguous() else plain


def _own_memory(tensor: Tensor, taken: set[int]) -> Tensor:
    """The tensor, contiguous and the only one in its memory, of which it may have been a part."""
    memory = tensor.untyped_storage()
    whole = tensor.is_contiguous() and memory.nbytes() == tensor.numel() * tensor.element_size()
    if not whole or memory.data_ptr() in taken:
        return tensor.clone(memory_format=torch.contiguous_format)
    if memory.nbytes():
        taken.add(memory.data_ptr())
    return tensor


def write(path: Path, stored: Stored) -> tuple[int, str]:
    """Write the tensors as a safetensors file; returns its length in bytes and its SHA-256 in hexadecimal.

    Raises:
        FewbitError: A tensor has a type that safetensors does not know.
        OSError: The disk is full.
    """
    try:
        save_file(stored.tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        for number in (errno.ENOSPC, errno.EDQUOT):
            if f"(os error {number})" in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise FewbitError(f"the tensors cannot be written to {path.name}: {error}") from error
    except (KeyError, ValueError) as error:
        raise FewbitError(f"the tensors cannot be written to {path.name}: {error}") from error
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)  # safetensors writes for the owner alone
    return path.stat().st_size, sha256(path)


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(paths: Sequence[Path], tables: Stored, slots: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors that a model needs, each into memory of its own.

    Args:
        paths: The safetensors files, their lengths and digests checked already.
        tables: The aliases and orders that were stored beside it.
        slots: The tensors (of any device, without data) that are expected, by name. A floating-point type may
            come back as another one; everything else must agree.

    Returns:
        A tensor for every slot; the names of one alias group share one tensor, a Parameter if the stored
        name's slot is one.

    Raises:
        FewbitError: A tensor is missing, unexpected, or of another shape or type.
    """
    path = paths[0] if len(paths) == 1 else paths[0].parent
    _check_aliases(path, tables.aliases, slots)
    tensors: dict[str, Tensor] = {}
    for each in paths:
        tensors |= _read_file(each)
    _check_names(path, set(tensors), slots.keys() - tables.aliases.keys())
    for name, order in tables.orders.items():
        tensors[name] = _reorder(path, name, tensors.get(name), order)
    for name, tensor in tensors.items():
        _check_slot(path, name, tensor, slots[name])
        if isinstance(slots[name], nn.Parameter):
            tensors[name] = nn.Parameter(tensor, slots[name].requires_grad)
    for alias, name in tables.aliases.items():
        _check_slot(path, alias, tensors[name], slots[alias])
        tensors[alias] = tensors[name]
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # A copy, because the file's own memory is mapped from the disk and starts anywhere.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise FewbitError(f"{path} is damaged: {str(error)[:200]}") from error


def _check_aliases(path: Path, aliases: Mapping[str, str], slots: Mapping[str, Tensor]) -> None:
    for alias, name in aliases.items():
        if alias not in slots or name not in slots or name in aliases:
            raise FewbitError(f"{path} does not fit its model: {alias[:80]!r} cannot be the same as {name[:80]!r}")


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    for name in sorted(expected - found):
        raise FewbitError(f"{path} does not fit its model: it lacks the tensor {name[:200]}")
    for name in sorted(found - expected):
        raise FewbitError(f"{path} does not fit its model: it holds the unexpected tensor {name[:200]}")


def _reorder(path: Path, name: str, tensor: Tensor | None, order: list[int]) -> Tensor:
    if tensor is None or sorted(order) != list(range(tensor.dim())):
        raise FewbitError(f"{path} does not fit its model: the order of dimensions of {name[:80]!r}")
    return tensor.permute([order.index(d) for d in range(len(order))])


def _check_slot(path: Path, name: str, tensor: Tensor, slot: Tensor) -> None:
    if tensor.shape != slot.shape:
        raise FewbitError(
            f"{path} does not fit its model: the tensor {name} has the shape {_shape(tensor)} instead of {_shape(slot)}"
        )
    both_float = tensor.is_floating_point() and slot.is_floating_point()
    if tensor.dtype != slot.dtype and not both_float:
        raise FewbitError(
            f"{path} does not fit its model: the tensor {name} is of type {tensor.dtype} instead of {slot.dtype}"
        )


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "()"
