"""What is known of a model's architecture, and its form as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.formats.architecture.values import DTYPES, Json, dtype_name

KINDS = ("parameter", "buffer", "constant")
"""What a tensor outside the layers may be; a constant is a buffer that is not in the state dict."""


@dataclass(frozen=True)
class Slot:
    """A tensor that a skeleton is to have: its kind (one of `KINDS`), element type and shape."""

    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @staticmethod
    def of(tensor: Tensor, kind: str) -> Slot:
        """The slot that fits ``tensor``."""
        return Slot(kind, tensor.dtype, tuple(tensor.shape))

    def empty(self) -> Tensor:
        """A tensor of this shape and type on the meta device, a `torch.nn.Parameter` if it is to be one."""
        tensor = torch.empty(self.shape, dtype=self.dtype, device="meta")
        if self.kind != "parameter":
            return tensor
        return nn.Parameter(tensor, requires_grad=self.dtype.is_floating_point or self.dtype.is_complex)

    def to_json(self) -> Json:
        """As ``[kind, dtype, [size, ...]]``."""
        return [self.kind, dtype_name(self.dtype), list(self.shape)]

    @staticmethod
    def from_json(value: Json) -> Slot:
        """Read `to_json`'s form.

        Raises:
            ValueError: It is not of that form.
        """
        if isinstance(value, list) and len(value) == 3:
            kind, dtype, shape = value
            if kind in KINDS and isinstance(dtype, str) and dtype in DTYPES and isinstance(shape, list):
                sizes = tuple(size for size in shape if type(size) is int and 0 <= size < 2**48)
                if len(sizes) == len(shape) <= 16:
                    return Slot(str(kind), DTYPES[dtype], sizes)
        raise ValueError("a tensor that is not described as [kind, type, shape]")


@dataclass(frozen=True)
class Description:
    """An architecture that can be written as JSON.

    Attributes:
        kind: The module of this package that builds it: ``tree``, ``graph``, ``huggingface`` or ``unknown``.
        class_name: The model's class, for messages and for display.
        details: What the kind needs besides, as JSON.
        modules: Layers by path, each as `layers.describe` wrote it, or ``{"same": path}`` for one that stands
            at an earlier path too. For the kinds built from a float model (``huggingface``, ``unknown``) only
            what is to be put in the place of that model's layers.
        tensors: Tensors by path that belong to no layer.
        ties: Path of a packed weight inside a layer to the earlier path at which the same object stands.
        constants: The values of those tensors of kind ``constant``; not part of the JSON.
    """

    kind: str
    class_name: str
    details: dict[str, Json] = field(default_factory=dict)
    modules: dict[str, Json] = field(default_factory=dict)
    tensors: dict[str, Slot] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict, compare=False)

    def to_json(self) -> dict[str, Json]:
        """As a JSON object with the members ``kind, class, details, modules, tensors, ties``."""
        return {
            "kind": self.kind,
            "class": self.class_name,
            "details": self.details,
            "modules": self.modules,
            "tensors": {path: slot.to_json() for path, slot in self.tensors.items()},
            "ties": dict(self.ties),
        }

    @staticmethod
    def from_json(value: Json) -> Description:
        """Read `to_json`'s form, without the constants.

        Raises:
            ValueError: It is not of that form.
        """
        members: dict[str, Any] = members_of(
            value,
            {"kind": str, "class": str, "details": dict, "modules": dict, "tensors": dict, "ties": dict},
        )
        if not all(isinstance(path, str) for path in members["ties"].values()):
            raise ValueError("a tie that is not a path")
        return Description(
            members["kind"],
            members["class"],
            members["details"],
            members["modules"],
            {path: Slot.from_json(slot) for path, slot in members["tensors"].items()},
            members["ties"],
        )


def members_of(value: Json, types: dict[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """Check that a JSON object has exactly the named members, each of its type, and return it.

    Raises:
        ValueError: It is no object, or a member is missing, unexpected or of another type.
    """
    if not isinstance(value, dict):
        raise ValueError("something else where an object is expected")
    for name in value:
        if name not in types:
            raise ValueError(f"the unexpected member {name[:40]!r}")
    for name, kinds in types.items():
        if name not in value:
            raise ValueError(f"no member {name!r}")
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        if type(value[name]) not in allowed:
            raise ValueError(f"the member {name!r} of a wrong type")
    return value
