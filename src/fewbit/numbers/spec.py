"""QSpec: the whole description of a quantized tensor in one frozen value and one short string."""

from __future__ import annotations

from dataclasses import dataclass, field

from fewbit.errors import FewbitError
from fewbit.numbers import granularity as grain
from fewbit.numbers.format import Format
from fewbit.numbers.formats import get_format
from fewbit.numbers.granularity import Granularity

_SYMMETRY = {"sym": True, "asym": False}


@dataclass(frozen=True)
class QSpec:
    """Format, granularity and symmetry; ``narrow`` leaves out the lowest code (int8: −127 … 127).

    The string is ``FORMAT/GRANULARITY/SYMMETRY[/narrow]``: ``int4/g128/asym``, ``int8/channel/sym/narrow``.
    """

    format: Format
    granularity: Granularity
    symmetric: bool
    narrow: bool = False
    text: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.narrow and not (self.format.is_integer and self.format.qmin < 0 and self.format.bits > 1):
            raise FewbitError(f"narrow is for signed integers of 2 bits or more, not for {self.format.name}")
        symmetry = "sym" if self.symmetric else "asym"
        text = f"{self.format.name}/{self.granularity}/{symmetry}{'/narrow' if self.narrow else ''}"
        # Made once: torch.compile takes a constant where it cannot follow the formatting.
        object.__setattr__(self, "text", text)

    @classmethod
    def parse(cls, text: str) -> QSpec:
        """Read a spec string.

        Raises:
            FewbitError: A part is unknown or missing; the message says which.
        """
        parts = text.strip().split("/")
        if len(parts) not in (3, 4) or parts[2] not in _SYMMETRY or parts[3:] not in ([], ["narrow"]):
            raise FewbitError(f"{text!r} is no spec; write FORMAT/GRANULARITY/sym or asym, for example int4/g128/asym")
        return cls(get_format(parts[0]), grain.parse(parts[1]), _SYMMETRY[parts[2]], narrow=len(parts) == 4)

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


def as_spec(spec: QSpec | str) -> QSpec:
    """A QSpec from itself or from its string."""
    return QSpec.parse(spec) if isinstance(spec, str) else spec
