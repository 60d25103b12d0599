"""What quantizing an ONNX file gave."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OnnxLayer:
    """One quantized layer.

    Attributes:
        name: The node's name.
        kind: Its type.
        weights: The spec of its weights.
        input: The spec of its input, or ``float``.
        parameters: Weights and biases.
        bytes_before: Of the float layer.
        bytes_after: Of the codes, scales, zero points and bias.
    """

    name: str
    kind: str
    weights: str
    input: str
    parameters: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class OnnxResult:
    """A quantized ONNX file.

    Attributes:
        output: The file.
        target: The runtime it is written for.
        layers: What was quantized.
        skipped: Layers that stayed float, and why.
        bytes_before: Of the float file with its external data.
        bytes_after: Of the quantized one.
        notes: What the user should know, one sentence each.
        regions: What ``only_if_faster`` measured and decided, one entry a region.
    """

    output: Path
    target: str
    layers: tuple[OnnxLayer, ...]
    skipped: dict[str, str]
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = ()
    regions: tuple[dict[str, Any], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)
