"""Perplexity of a language model on a text, and how far its predictions are from the float model's.

The text is tokenized as one and cut into windows of ``length`` tokens that start every ``stride`` tokens; a window that
overlaps the one before scores only its new tokens. With a BOS token before each window, every token of the text is
scored, the first of a window too. All of this is part of the result, since perplexities compare only at equal windows.

    perplexity = exp(−Σ log p(token) / tokens)      KL = Σ p log(p / q) / tokens, p the float model's, in nats
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.calibrate.collect import Progress
from fewbit.errors import FewbitError
from fewbit.wording import counted

_ROWS = 64  # logits handled at once: with a vocabulary of 262144 each copy of them takes 64 MiB


@dataclass(frozen=True)
class TextWindows:
    """A tokenized text, cut.

    Attributes:
        ids: int64 ``[windows, length]``, or one longer with BOS in front.
        length: Tokens of text in a window.
        stride: Tokens between the starts of two windows.
        bos: The token put before each window, or None.
    """

    ids: Tensor
    length: int
    stride: int
    bos: int | None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def first_scored(self, window: int) -> int:
        """The index in ``ids[window]`` of the first token that is scored."""
        start = 0 if self.bos is None else 1
        return max(start if window == 0 else start + self.length - self.stride, 1)

    def describe(self) -> str:
        """For tables: ``32 windows of 512 tokens, stride 512, <bos> before each``."""
        bos = "no BOS" if self.bos is None else f"BOS ({self.bos}) before each"
        return f"{counted(len(self), 'window')} of {self.length} tokens, stride {self.stride}, {bos}"


@dataclass(frozen=True)
class Perplexity:
    """What was measured.

    Attributes:
        perplexity: ``exp(nll)``.
        nll: Mean negative log-likelihood of a token, in nats.
        tokens: How many were scored.
        windows: The text's cut.
        kl: Mean Kullback-Leibler divergence from the float model's predictions, in nats; None without a float model.
        top1: Share of tokens for which both models rank the same token first.
        float_perplexity: The float model's perplexity in the same pass.
    """

    perplexity: float
    nll: float
    tokens: int
    windows: TextWindows
    kl: float | None = None
    top1: float | None = None
    float_perplexity: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        cut = self.windows
        return {
            "perplexity": self.perplexity,
            "nll": self.nll,
            "tokens": self.tokens,
            "windows": {"count": len(cut), "length": cut.length, "stride": cut.stride, "bos": cut.bos},
            "float_perplexity": self.float_perplexity,
            "kl": self.kl,
            "top1": self.top1,
        }


def text_windows(
    text: str,
    tokenizer: Any,
    *,
    length: int = 512,
    stride: int | None = None,
    bos: bool | None = None,
    limit: int | None = None,
    name: str = "the text",
) -> TextWindows:
    """Cut a text.

    Args:
        text: The text, tokenized as one.
        tokenizer: Of transformers.
        length: Tokens of text in a window.
        stride: Tokens between the starts of two windows, 1 to ``length``; None: ``length``, no overlap.
        bos: Whether BOS goes before each window; None: as the tokenizer itself does.
        limit: Keep only the first windows.
        name: The text's name in errors.

    Raises:
        FewbitError: The text is empty or shorter than two tokens, BOS is wanted and the tokenizer has none, or the
            stride does not fit.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise FewbitError(f"the stride is 1 to the window's length {length}, not {stride}")
    token = tokenizer.bos_token_id
    if bos is None:
        bos = token is not None and tokenizer("")["input_ids"][:1] == [token]
    if bos and token is None:
        raise FewbitError("the tokenizer has no BOS token to put before each window; leave it out")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    if ids.numel() + bool(bos) < 2:
        raise FewbitError(f"{name} holds no text to score")
    length = min(length, ids.numel())
    cut = ids.unfold(0, length, min(stride, length))[:limit]
    if bos:
        cut = torch.cat([torch.full((cut.shape[0], 1), token, dtype=torch.int64), cut], dim=1)
    return TextWindows(cut.contiguous(), length, min(stride, length), token if bos else None)


def perplexity(
    model: nn.Module,
    windows: TextWindows,
    *,
    against: nn.Module | None = None,
    logits: Callable[[nn.Module, Tensor], Tensor] | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Score every window.

    Args:
        model: A causal language model of transformers, quantized or not.
        windows: From :func:`text_windows`.
        against: The float model, for the divergence of predictions.
        logits: How ``model`` computes ``[T, vocabulary]`` from ids ``[1, T]``; None: in one pass.
        progress: Called with (stage, windows done, windows in all).

    Raises:
        FewbitError: The model is no causal language model, the windows are longer than its positions, or its outputs
            are not finite.
    """
    for each in (model, against):
        if each is not None:
            _check(each, windows)
    sums = _Sums()
    with torch.no_grad():
        for index in range(len(windows)):
            ids, first = windows.ids[index : index + 1], windows.first_scored(index)
            ours = (logits or _logits)(model, ids)[first - 1 : -1]
            theirs = None if against is None else _logits(against, ids)[first - 1 : -1]
            sums.add(ours, theirs, ids[0, first:].to(ours.device))
            if progress is not None:
                progress("perplexity", index + 1, len(windows))
    return sums.result(windows)


class _Sums:
    """Sums over tokens, in float64."""

    def __init__(self) -> None:
        self.nll = self.float_nll = self.kl = 0.0
        self.same = self.tokens = 0
        self.against = False

    def add(self, ours: Tensor, theirs: Tensor | None, targets: Tensor) -> None:
        self.tokens += targets.numel()
        self.against = theirs is not None
        for rows in _rows(targets.numel()):
            q, wanted = torch.log_softmax(ours[rows].float(), -1), targets[rows, None]
            self.nll -= float(q.gather(1, wanted).double().sum())
            if theirs is not None:
                p = torch.log_softmax(theirs[rows].float(), -1)
                self.float_nll -= float(p.gather(1, wanted).double().sum())
                self.kl += float((p.exp() * (p - q)).sum(-1).double().sum())
                self.same += int((p.argmax(-1) == q.argmax(-1)).sum())

    def result(self, windows: TextWindows) -> Perplexity:
        if not self.tokens:
            raise FewbitError("no token is scored: a window needs two, or one behind a BOS")
        nll = self.nll / self.tokens
        if not math.isfinite(nll):
            raise FewbitError("the model's predictions are not finite; it cannot be scored")
        if not self.against:
            return Perplexity(_exp(nll), nll, self.tokens, windows)
        kl, same, float_nll = self.kl / self.tokens, self.same / self.tokens, self.float_nll / self.tokens
        return Perplexity(_exp(nll), nll, self.tokens, windows, kl, same, _exp(float_nll))


def _exp(nll: float) -> float:
    return math.exp(nll) if nll < 700 else math.inf


def _rows(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """``[T, vocabulary]`` of one window ``[1, T]``."""
    device = next(iter([*model.parameters(), *model.buffers()])).device
    found: Tensor = model(input_ids=ids.to(device), use_cache=False).logits[0]
    return found


def _check(model: nn.Module, windows: TextWindows) -> None:
    config: Any = getattr(model, "config", None)
    generates = getattr(model, "can_generate", None)
    if config is None or generates is None or not generates() or getattr(config, "is_encoder_decoder", False):
        raise FewbitError(f"perplexity needs a causal language model of transformers, not {type(model).__name__}")
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    length = windows.ids.shape[1]
    if isinstance(positions, int) and length > positions:
        raise FewbitError(f"windows of {length} tokens are longer than the model's {positions} positions; cut shorter")
