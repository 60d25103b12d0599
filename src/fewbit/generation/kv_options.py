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
        keys: ``"channel"`` or ``"token"``.
        group: Channels of a token that share a scale, in what is quantized per token; 0 for all of a head.
        block: Tokens that are quantized together, a multiple of 8.
        window: At least so many of the newest tokens stay in float.
    """

    bits: int = 8
    keys: str = "channel"
    group: int = 64
    block: int = 32
    window: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 8):
            raise FewbitError(f"keys and values have 2, 3, 4 or 8 bits, not {self.bits}")
        if self.keys not in ("channel", "token"):
            raise FewbitError(f"keys are quantized per channel or per token, not {self.keys!r}")
        if self.block < 8 or self.block % 8 or self.window < 0 or self.group < 0:
            raise FewbitError("a block of keys and values has a multiple of 8 tokens; nothing else is negative")

    @classmethod
    def parse(cls, text: str) -> KVOptions:
        """Read ``int8``, ``int4``, ``int4-token``, ``int2-g32-b64-w128``: bits, keys per ``token`` or ``channel``,
        channels of a group, tokens of a block, tokens in float.

        Raises:
            FewbitError: The text is none of these.
        """
        match = re.fullmatch(
            r"int(\d)(?:-(channel|token))?(?:-g(\d{1,5}))?(?:-b(\d{1,5}))?(?:-w(\d{1,6}))?", text.strip().lower()
        )
        if match is None:
            raise FewbitError(f"{text!r} is no cache of keys and values; write for example int8, int4 or int4-w128")
        defaults = (cls.group, cls.block, cls.window)
        group, block, window = (int(found or default) for found, default in zip(match.groups()[2:], defaults))
        return cls(int(match[1]), match[2] or cls.keys, group, block, window)

    def describe(self) -> str:
        """For tables."""
        by_token = "token and head" if self.group == 0 else f"token and {self.group} channels"
        keys = f"channel and {self.block} tokens" if self.keys == "channel" else by_token
        return (
            f"int{self.bits}: keys per {keys}, values per {by_token}, the newest {self.window} or more tokens in float"
        )
