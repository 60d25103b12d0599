"""How a cache of keys and values is quantized, and the short string for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fewbit.errors import FewbitError


@dataclass(frozen=True)
class KVOptions:
    """How keys and values are quantized.

    Attributes:
        bits: Of a code: 2, 3, 4 or 8.
        keys: ``"channel"`` or ``"token"``; None: per channel below 8 bits.
        block: Tokens that are quantized together, a multiple of 8.
        window: At least so many of the newest tokens stay in float.
    """

    bits: int = 8
    keys: str | None = None
    block: int = 32
    window: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise FewbitError(f"keys and values have 2, 3, 4 or 8 bits, not {self.bits}")
        if self.keys not in (None, "channel", "token"):
            raise FewbitError(f"keys are quantized per channel or per token, not {self.keys!r}")
        if self.block < 8 or self.block % 8 or self.window < 0:
            raise FewbitError("a block of keys and values has a multiple of 8 tokens, and a window is not negative")

    @classmethod
    def parse(cls, text: str) -> KVOptions:
        """Read ``int8``, ``int4``, ``int4-token``, ``int2-g64-w128``: bits, keys per ``token`` or ``channel``, tokens
        of a block, tokens in float.

        Raises:
            FewbitError: The text is none of these.
        """
        match = re.fullmatch(r"int(\d)(?:-(channel|token))?(?:-g(\d{1,5}))?(?:-w(\d{1,6}))?", text.strip().lower())
        if match is None:
            raise FewbitError(f"{text!r} is no cache of keys and values; write for example int8, int4 or int4-g64-w128")
        block, window = int(match[3] or cls.block), int(match[4] or cls.window)
        return cls(int(match[1]), match[2], block, window)

    @property
    def by_channel(self) -> bool:
        """Whether keys are quantized per channel."""
        return self.keys == "channel" or (self.keys is None and self.bits < 8)

    def describe(self) -> str:
        """For tables."""
        keys = "channel" if self.by_channel else "token and head"
        return (
            f"int{self.bits}: keys per {keys}, values per token and head, blocks of {self.block} tokens, the newest "
            f"{self.window} or more in float"
        )
