"""A quantized cache of keys and values for ``transformers``: pass it as the model's cache.

::

    from fewbit.generation.kv_cache import quantized_cache
    from fewbit.generation.kv_options import KVOptions

    model.generate(**inputs, cache=quantized_cache(model, KVOptions.parse("int4")))  # or past_key_values=

The newest ``window`` tokens and those that do not fill a block yet stay in float; older ones are quantized a block at
a time (KIVI's residual, arXiv 2402.02750, section 3.3). What a prompt's own forward pass attends to is in float.
Layers with a sliding window keep little more than the window; layers without keys and values (state spaces) stay as
they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
)

from fewbit.errors import FewbitError
from fewbit.generation.kv_options import KVOptions
from fewbit.generation.kv_store import QuantizedStates


class QuantizedLayer(CacheLayerMixin):  # type: ignore[misc]
    """The cache of one attention layer; ``keys`` and ``values`` are its float tail."""

    is_croppable = True
    keys: Tensor | None
    values: Tensor | None

    def __init__(self, options: KVOptions, sliding_window: int | None = None) -> None:
        super().__init__()
        self.options, self.sliding_window = options, sliding_window
        self.is_sliding = sliding_window is not None
        self.cumulative_length = 0
        self._new_stores()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Start with no tokens."""
        self.device, self.dtype = key_states.device, key_states.dtype
        self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values.

        Args:
            key_states: ``[batch, heads, new tokens, width]``.
            value_states: The same.
            args: Not used.
            kwargs: Not used.

        Returns:
            All keys and values that attention needs: the stored ones as their codes say, the new ones as they came.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        past = self._past()
        self.cumulative_length += key_states.shape[-2]
        self.keys = torch.cat([self.keys, key_states], dim=-2)
        self.values = torch.cat([self.values, value_states], dim=-2)
        self._settle()
        if past is None:
            return key_states, value_states
        return torch.cat([past[0], key_states], dim=-2), torch.cat([past[1], value_states], dim=-2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys attention will see, and the position of the first."""
        visible = self._visible()
        return visible + query_length, self.cumulative_length - visible

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """The sliding window, or -1 for no limit."""
        return -1 if self.sliding_window is None else self.sliding_window

    def reset(self) -> None:
        """Forget everything."""
        self.keys = self.values = None
        self.is_initialized, self.cumulative_length = False, 0
        self._new_stores()

    def offload(self) -> None:
        """Quantized states are small; they stay where they are."""

    def prefetch(self) -> None:
        """Nothing was moved."""

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest ``-tokens_to_remove`` tokens; blocks that are cut come back to float as their codes say.

        Raises:
            FewbitError: The number is positive, or a sliding window has dropped the tokens before already.
        """
        if tokens_to_remove > 0:
            raise FewbitError("crop takes a negative number, how many tokens to remove")
        count = -tokens_to_remove
        if count == 0 or not self.is_initialized:
            return
        if self.sliding_window is not None and self.cumulative_length >= self.sliding_window:
            raise FewbitError("a sliding window that is full cannot be cropped: the tokens before it are gone")
        past = self._past()
        assert past is not None
        kept = max(past[0].shape[-2] - count, 0)
        whole = min(self._stored_keys.tokens, kept) // self.options.block
        gone = self._stored_keys.tokens // self.options.block - whole
        for store in (self._stored_keys, self._stored_values):
            store.drop_last(gone)
        first = whole * self.options.block
        self.keys, self.values = (each[..., first:kept, :].clone() for each in past)
        self.cumulative_length = kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Another order of the batch, for beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch."""
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            self.keys, self.values = self.keys[indices], self.values[indices]
            for store in (self._stored_keys, self._stored_values):
                store.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row of the batch so many times."""
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)
            for store in (self._stored_keys, self._stored_values):
                store.repeat(repeats)

    @property
    def nbytes(self) -> int:
        """Bytes in use, the float tail included."""
        tail = sum(t.numel() * t.element_size() for t in (self.keys, self.values) if t is not None)
        return tail + self._stored_keys.nbytes + self._stored_values.nbytes

    def _new_stores(self) -> None:
        options = self.options
        self._stored_keys = QuantizedStates(options.bits, options.block, options.keys == "channel", options.group)
        self._stored_values = QuantizedStates(options.bits, options.block, False, options.group)

    def _visible(self) -> int:
        """Past tokens that attention needs."""
        limit = self.cumulative_length if self.sliding_window is None else self.sliding_window - 1
        return min(limit, self.cumulative_length)

    def _past(self) -> tuple[Tensor, Tensor] | None:
        assert self.keys is not None
        assert self.values is not None
        visible = self._visible()
        if visible == 0:
            return None
        from_store = visible - self.keys.shape[-2]
        if from_store <= 0:
            start = -from_store
            return self.keys[..., start:, :], self.values[..., start:, :]
        first = (self._stored_keys.tokens - from_store) // self.options.block
        pairs = ((self._stored_keys, self.keys), (self._stored_values, self.values))
        keys, values = (
            torch.cat([store.read(self.dtype, first), tail], -2)[..., -visible:, :] for store, tail in pairs
        )
        return keys, values

    def _settle(self) -> None:
        """Quantize what has left the window, and forget what no query will see again."""
        assert self.keys is not None
        assert self.values is not None
        block = self.options.block
        ready = max(self.keys.shape[-2] - self.options.window, 0) // block * block
        if self.sliding_window is not None:  # a long prompt's first tokens are not worth quantizing
            unseen = max(self.keys.shape[-2] - (self.sliding_window - 1), 0) // block * block
            skipped = min(unseen, ready)
            if skipped:
                self._new_stores()
                self.keys, self.values = self.keys[..., skipped:, :], self.values[..., skipped:, :]
                ready -= skipped
        if ready:
            self._stored_keys.append(self.keys[..., :ready, :])
            self._stored_values.append(self.values[..., :ready, :])
            self.keys, self.values = self.keys[..., ready:, :].clone(), self.values[..., ready:, :].clone()
        if self.sliding_window is not None:
            extra = (self._stored_keys.tokens + self.keys.shape[-2] - (self.sliding_window - 1)) // block
            gone = min(max(extra, 0), self._stored_keys.tokens // block)
            if gone:
                for store in (self._stored_keys, self._stored_values):
                    store.drop_first(gone)


class QuantizedCache(DynamicCache):  # type: ignore[misc]
    """``transformers``' cache with the attention layers quantized.

    Args:
        config: The model's; it tells which layers slide.
        options: How to quantize.
    """

    def __init__(self, config: Any, options: KVOptions | None = None) -> None:
        super().__init__(config=config)
        self.options = options or KVOptions()
        self.layers: list[Any] = [_quantized(layer, self.options) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes of the quantized layers."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, QuantizedLayer))


def quantized_cache(model: nn.Module, options: KVOptions | None = None) -> Any:
    """An empty cache for a model of transformers. Of an encoder-decoder the decoder's own part is quantized.

    Raises:
        FewbitError: The model is none of transformers.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise FewbitError(f"a cache of keys and values needs a model of transformers, not {type(model).__name__}")
    cache = QuantizedCache(config, options)
    return EncoderDecoderCache(cache, DynamicCache(config=config)) if config.is_encoder_decoder else cache


def _quantized(layer: Any, options: KVOptions) -> Any:
    if type(layer) is DynamicLayer:
        return QuantizedLayer(options)
    if type(layer) is DynamicSlidingWindowLayer:
        return QuantizedLayer(options, layer.sliding_window)
    return layer
