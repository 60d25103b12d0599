"""What a quantized model remembers of how it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

_ATTRIBUTE = "_fewbit_info"


@dataclass
class QuantizationInfo:
    """How a model was quantized.

    Attributes:
        recipe: The recipe as plain values.
        algorithm: How weights were rounded.
        notes: Sentences for the user: what was skipped, kept, corrected.
        folded: (layer, batch norm) pairs that became one.
        skipped: Layers left in float, with the reason.
        between: Quantizers of tensors between layers: name, scale, zero point, smallest and largest code of each.
    """

    recipe: dict[str, Any]
    algorithm: str = "rtn"
    notes: list[str] = field(default_factory=list)
    folded: list[tuple[str, str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    between: list[list[Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> QuantizationInfo:
        """The inverse of :meth:`to_dict`."""
        folded = [(str(a), str(b)) for a, b in data["folded"]]
        notes, skipped = [str(n) for n in data["notes"]], {str(k): str(v) for k, v in data["skipped"].items()}
        between = [list(entry) for entry in data.get("between", [])]
        return cls(dict(data["recipe"]), str(data["algorithm"]), notes, folded, skipped, between)


def attach_info(model: nn.Module, info: QuantizationInfo) -> None:
    """Store the info on the model."""
    object.__setattr__(model, _ATTRIBUTE, info)


def info(model: nn.Module) -> QuantizationInfo | None:
    """The info of a quantized model, None for a float one."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, QuantizationInfo) else None
