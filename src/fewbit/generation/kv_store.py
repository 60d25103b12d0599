"""Past keys or values of one attention layer, quantized in blocks of tokens and packed.

A block of G tokens is quantized once and never touched again. Values have a scale and zero point for each token and
head, or for each group of its channels. Keys have large channels that stay large from token to token, so theirs are
quantized per channel over the tokens of a block (KIVI, Liu et al., arXiv 2402.02750, section 3.2), or per token too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewbit.kernels import dispatch
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec

_SCALE = torch.float16


@dataclass
class QuantizedStates:
    """Quantized ``[batch, heads, tokens, width]``, tokens a multiple of the block.

    Attributes:
        bits: Of a code: 2, 3, 4 or 8.
        block: G, tokens quantized together; a multiple of 8.
        by_channel: Whether scales are per channel over a block's tokens, else per token over its channels.
        group: Channels of a token that share a scale; 0 for all, as where the width is no multiple of it.
        codes: uint8 ``[batch, heads, blocks, bytes]``.
        scale: float16 ``[batch, heads, blocks, rows]``, rows being the width, or G times the groups of a token.
        zero_point: uint8, same shape.
        width: Channels of a head.
    """

    bits: int
    block: int
    by_channel: bool
    group: int = 0
    codes: Tensor | None = None
    scale: Tensor | None = None
    zero_point: Tensor | None = None
    width: int = 0
    spec: QSpec = field(init=False)

    def __post_init__(self) -> None:
        self.spec = QSpec.parse(f"uint{self.bits}/token/asym/f16")

    @property
    def tokens(self) -> int:
        """How many tokens are stored."""
        return 0 if self.codes is None else self.codes.shape[2] * self.block

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return sum(t.numel() * t.element_size() for t in self._tensors())

    @property
    def _shared(self) -> int:
        """Channels of a token that share a scale."""
        return self.group if self.group and self.width % self.group == 0 else self.width

    def append(self, x: Tensor) -> None:
        """Quantize and store ``[batch, heads, n·G, width]``."""
        batch, heads, tokens, self.width = x.shape
        blocks = x.to(torch.float32).reshape(batch, heads, tokens // self.block, self.block, self.width)
        blocks = blocks.transpose(-1, -2) if self.by_channel else blocks.reshape(*blocks.shape[:3], -1, self._shared)
        lo, hi = torch.aminmax(blocks, dim=-1)
        scale, zero_point = affine.scale_and_zero_point(lo, hi, self.spec, "a key or value")
        t = affine.quantize(blocks.contiguous(), self.spec, scale=scale, zero_point=zero_point, name="a key or value")
        assert t.zero_point is not None
        codes = dispatch.pack(t.codes, self.bits).reshape(*blocks.shape[:3], -1)
        new = (codes, t.scale.to(_SCALE), t.zero_point.to(torch.uint8))
        if self.codes is not None:
            new = tuple(torch.cat(pair, dim=2) for pair in zip(self._tensors(), new))  # type: ignore[assignment]
        self.codes, self.scale, self.zero_point = new

    def read(self, dtype: torch.dtype, first: int = 0) -> Tensor:
        """``[batch, heads, tokens, width]`` in a dtype, of the blocks from ``first`` on."""
        assert self.codes is not None
        assert self.scale is not None
        assert self.zero_point is not None
        codes, scale, zero = (t[:, :, first:] for t in (self.codes, self.scale, self.zero_point))
        rows = scale.numel()
        count = rows * (self.block if self.by_channel else self._shared)
        flat = dispatch.unpack(codes.reshape(-1), self.bits, count, signed=False).reshape(rows, -1)
        values = dispatch.dequantize_rows(flat, scale.float().reshape(-1), zero.to(torch.int32).reshape(-1))
        values = values.reshape(*scale.shape, -1)
        if self.by_channel:
            values = values.transpose(-1, -2)
        return values.reshape(*scale.shape[:2], -1, self.width).to(dtype)

    def drop_first(self, blocks: int) -> None:
        """Forget the oldest blocks."""
        self._map(lambda t: t[:, :, blocks:].clone())

    def drop_last(self, blocks: int) -> None:
        """Forget the newest blocks."""
        self._map(lambda t: t[:, :, : t.shape[2] - blocks].clone())

    def select(self, index: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        self._map(lambda t: t.index_select(0, index.to(t.device)))

    def repeat(self, times: int) -> None:
        """Each row of the batch so many times."""
        self._map(lambda t: t.repeat_interleave(times, dim=0))

    def _map(self, change: object) -> None:
        if self.codes is not None:
            assert callable(change)
            self.codes, self.scale, self.zero_point = (change(t) for t in self._tensors())

    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.codes, self.scale, self.zero_point) if t is not None)
