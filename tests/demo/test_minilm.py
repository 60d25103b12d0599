"""The encoder, the scores people gave, and the rank correlation between them."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.demo.minilm import (
    Encoder,
    mean_pooled,
    minilm,
    minilm_folder,
    news_texts,
    rank_correlation,
    simlex999,
    spearman,
    wordsim353,
)
from fewbit.sources import load_model


def ranks_by_counting(values: list[int]) -> list[Fraction]:
    """A value's rank is one more than the values below it, and half of the others equal to it."""
    return [1 + sum(b < a for b in values) + Fraction(sum(b == a for b in values) - 1, 2) for a in values]


@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=30))
def test_spearman_is_pearson_of_the_ranks(pairs: list[tuple[int, int]]) -> None:
    x, y = (list(side) for side in zip(*pairs))
    a, b = ranks_by_counting(x), ranks_by_counting(y)
    mean = Fraction(len(x) + 1, 2)
    covariance = sum((p - mean) * (q - mean) for p, q in zip(a, b))
    product = sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b)
    found = spearman(torch.tensor(x).double(), torch.tensor(y).double())
    if product == 0:
        assert found != found  # no correlation where one side never changes
    else:
        assert found == pytest.approx(float(covariance) / float(product) ** 0.5, abs=1e-12)


def test_spearman_of_permutations_is_the_textbook_formula() -> None:
    """Without ties, 1 - 6 Σd² / (n (n² - 1))."""
    torch.manual_seed(0)
    x, y = torch.randperm(50), torch.randperm(50)
    d = (x - y).double()
    expected = 1 - 6 * float((d * d).sum()) / (50 * (50**2 - 1))
    assert spearman(x.double().exp(), y.double() ** 3) == pytest.approx(expected, abs=1e-12)


def test_mean_pooling_leaves_padding_out() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.equal(mean_pooled(states, mask), torch.tensor([[2.0, 3.0], [2.0, 2.0]]))


@pytest.mark.demo
def test_the_collections_are_whole() -> None:
    for collection, count, first in (
        (wordsim353(), 353, ("love", "sex")),
        (simlex999(), 999, ("old", "new")),
    ):
        assert len(collection.pairs) == len(collection.scores) == count
        assert collection.pairs[0] == first
        assert 0 <= float(collection.scores.min()) < float(collection.scores.max()) <= 10
    assert len(news_texts()) == 50


@pytest.mark.demo
def test_float_scores_are_the_known_ones() -> None:
    model, encoder = minilm(), Encoder()
    assert sum(p.numel() for p in model.parameters()) == 22_713_216
    assert rank_correlation(lambda words: encoder.embed(model, words), wordsim353()) == pytest.approx(0.729, abs=0.002)
    assert rank_correlation(lambda words: encoder.embed(model, words), simlex999()) == pytest.approx(0.447, abs=0.002)


@pytest.mark.demo
def test_embeddings_keep_the_order_of_the_texts() -> None:
    model, encoder = minilm(), Encoder(batch_size=2)
    texts = [
        "a much longer text about the weather in the north",
        "cat",
        "the dog sleeps",
        "tea",
        "rain again",
    ]
    together = encoder.embed(model, texts)
    for text, found in zip(texts, together):
        torch.testing.assert_close(found, encoder.embed(model, [text])[0], atol=1e-5, rtol=0)


@pytest.mark.demo
def test_the_folder_is_a_source_with_a_tokenizer() -> None:
    loaded = load_model(minilm_folder())
    assert (loaded.kind, type(loaded.model).__name__, loaded.notes) == ("huggingface", "BertModel", ())
    assert loaded.tokenizer_dir == minilm_folder()
