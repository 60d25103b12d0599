"""QSpec: the whole description of a quantized tensor in one frozen value and one short string."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from fewbit.errors import FewbitError
from fewbit.numbers import granularity as grain
from fewbit.numbers.format import Format
from fewbit.numbers.formats import get_format
from fewbit.numbers.granularity import Granularity

_SYMMETRY = {"sym": True, "asym": False}
_SCALE_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class QSpec:
    """Format, granularity and symmetry; ``narrow`` leaves out the lowest code (int8: −127 … 127).

    Scales are computed in float32; ``scale_type`` (``f32``, ``f16``, ``bf16``) is what they are rounded to before codes
    are computed, and stored in. The string is ``FORMAT/GRANULARITY/SYMMETRY[/narrow][/f16 or /bf16]``:
    ``int4/g128/asym/f16``, ``int8/channel/sym/narrow``.
    """

    format: Format
    granularity: Granularity
    symmetric: bool
    narrow: bool = False
    scale_type: str = "f32"
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.narrow and not (self.format.is_integer and self.format.qmin < 0 and self.format.bits > 1):
            raise FewbitError(f"narrow is for signed integers of 2 bits or more, not for {self.format.name}")
        if self.scale_type not in _SCALE_TYPES:
            raise FewbitError(f"scales are stored as {', '.join(_SCALE_TYPES)}, not {self.scale_type!r}")
        symmetry = "sym" if self.symmetric else "asym"
        text = f"{self.format.name}/{self.granularity}/{symmetry}{'/narrow' if self.narrow else ''}"
        text += "" if self.scale_type == "f32" else f"/{self.scale_type}"
        # Made once: torch.compile takes a constant where it cannot follow the formatting.
        object.__setattr__(self, "text", text)

    @classmethod
    def parse(cls, text: str) -> QSpec:
        """Read a spec string.

        Raises:
            FewbitError: A part is unknown or missing; the message says which.
        """
        parts = text.strip().split("/")
        narrow = parts[3:4] == ["narrow"]
        scale_type = parts[3 + narrow :] or ["f32"]
        if len(parts) < 3 or parts[2] not in _SYMMETRY or len(scale_type) > 1 or scale_type[0] not in _SCALE_TYPES:
            raise FewbitError(f"{text!r} is no spec; write FORMAT/GRANULARITY/sym or asym, for example int4/g128/asym")
        fmt, granularity = get_format(parts[0]), grain.parse(parts[1])
        return cls(fmt, granularity, _SYMMETRY[parts[2]], narrow=narrow, scale_type=scale_type[0])

    def __str__(self) -> str:
        return self.text

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.format.bits

    @property
    def qmin(self) -> float:
        """The smallest value in use."""
        return self.format.qmin + (1 if self.narrow else 0)

    @property
    def qmax(self) -> float:
        """The largest value in use."""
        return self.format.qmax

    @property
    def scale_dtype(self) -> torch.dtype:
        """What scales are stored in."""
        return _SCALE_TYPES[self.scale_type]


def as_spec(spec: QSpec | str) -> QSpec:
    """A QSpec from itself or from its string."""
    return QSpec.parse(spec) if isinstance(spec, str) else spec
