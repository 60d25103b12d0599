"""Generating text token by token, with its speed; and predictions through a cache, for measuring what it costs."""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Only the likeliest tokens that together have this probability.
        seed: Of the random numbers.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise FewbitError("the temperature is 0 or more, and top-p lies above 0 and up to 1")


@dataclass
class Speed:
    """Time spent.

    Attributes:
        prompt_tokens: Of the prompt, run in one pass.
        prompt_seconds: That pass.
        tokens: Generated.
        seconds: For the tokens after the first, one pass each.
        full: Whether the end of the model's positions ended the text.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    full: bool = False

    @property
    def tokens_per_second(self) -> float:
        """Of the passes after the prompt's; 0 when there was none."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else 0.0


def generate(
    model: nn.Module,
    ids: Tensor,
    cache: Any,
    *,
    limit: int,
    sampling: Sampling | None = None,
    stop: frozenset[int] = frozenset(),
    speed: Speed | None = None,
) -> Iterator[int]:
    """Yield the tokens that a causal language model writes after a prompt, as they come.

    Args:
        model: Of transformers, quantized or not.
        ids: int64 ``[1, T]``, the prompt.
        cache: An empty cache of keys and values.
        limit: At most so many tokens; fewer where the model's positions end.
        sampling: How tokens are chosen; None: the likeliest.
        stop: Tokens that end the text; they are not yielded.
        speed: Filled with what was measured.

    Raises:
        FewbitError: The prompt is empty or too long, or the model is no causal language model.
    """
    check_generates(model)
    asked, limit = limit, min(limit, _room(model, ids.shape[1]))
    sampling, speed = sampling or Sampling(), speed or Speed()
    choose = _chooser(sampling)
    speed.prompt_tokens = ids.shape[1]
    given = ids.to(_device(model))
    for step in range(limit):
        start = time.perf_counter()
        token = choose(_last_logits(model, given, cache))
        elapsed = time.perf_counter() - start
        if step == 0:
            speed.prompt_seconds = elapsed
        else:
            speed.seconds += elapsed
        if token in stop:
            speed.seconds -= elapsed if step else 0
            return
        speed.tokens += 1
        yield token
        given = torch.tensor([[token]], device=given.device)
    speed.full = limit < asked


def cached_logits(model: nn.Module, ids: Tensor, cache: Any, chunk: int) -> Tensor:
    """The predictions of a model that reads ``chunk`` tokens at a time and keeps the rest in a cache.

    Args:
        model: A causal language model of transformers.
        ids: int64 ``[1, T]``.
        cache: An empty cache.
        chunk: Tokens of a pass. As long as it is not above the block and the window of a quantized cache, every token
            sees the past as it would in generating token by token.

    Returns:
        ``[T, vocabulary]``.
    """
    parts = torch.split(ids.to(_device(model)), chunk, dim=1)
    with torch.no_grad():
        named = {cache_argument(model): cache}
        return torch.cat([model(input_ids=part, use_cache=True, **named).logits[0] for part in parts])


def cache_argument(model: nn.Module) -> str:
    """What a model's forward calls its cache: ``cache`` in newer transformers, ``past_key_values`` before."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def check_generates(model: nn.Module) -> None:
    """Refuse what does not write text.

    Raises:
        FewbitError: The model is no causal language model of transformers.
    """
    config: Any = getattr(model, "config", None)
    can: Any = getattr(model, "can_generate", None)
    if config is None or can is None or not can() or getattr(config, "is_encoder_decoder", False):
        raise FewbitError(f"generating needs a causal language model of transformers, not {type(model).__name__}")


def _room(model: nn.Module, prompt: int) -> int:
    """How many tokens can be written after a prompt of that length.

    Raises:
        FewbitError: None.
    """
    if prompt == 0:
        raise FewbitError("the prompt has no tokens; write one, or let the tokenizer put BOS before it")
    config: Any = model.config
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return sys.maxsize
    if prompt > positions:
        raise FewbitError(f"the prompt has {prompt} tokens, the model only {positions} positions; cut it shorter")
    return positions - prompt + 1


def _last_logits(model: nn.Module, ids: Tensor, cache: Any) -> Tensor:
    named = {cache_argument(model): cache}
    with torch.no_grad():
        result: Tensor = model(input_ids=ids, use_cache=True, logits_to_keep=1, **named).logits[0, -1]
    return result


def _chooser(sampling: Sampling) -> Callable[[Tensor], int]:
    generator = torch.Generator().manual_seed(sampling.seed)

    def choose(logits: Tensor) -> int:
        if sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = torch.softmax(logits.float().cpu() / sampling.temperature, -1)
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= sampling.top_p] = 0  # the first is always kept
        return int(order[torch.multinomial(ordered, 1, generator=generator)])

    return choose


def _device(model: nn.Module) -> torch.device:
    return next(iter([*model.parameters(), *model.buffers()])).device
