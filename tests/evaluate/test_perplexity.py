"""Perplexity against a plain computation token by token; windows, strides and BOS."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import VOCABULARY, tiny

from fewbit.errors import FewbitError
from fewbit.evaluate.perplexity import Perplexity, TextWindows, perplexity, text_windows


class Tokenizer:
    """One token a character; puts BOS in front when asked for special tokens, as Gemma's does."""

    bos_token_id: int | None = 1

    def __init__(self, adds_bos: bool = True) -> None:
        self.adds_bos = adds_bos

    def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> dict[str, list[int]]:
        ids = [3 + ord(c) % (VOCABULARY - 3) for c in text]
        return {"input_ids": [1, *ids] if add_special_tokens and self.adds_bos else ids}


TEXT = "".join(chr(33 + (7 * i * i + 3 * i) % 90) for i in range(43))


def by_hand(model: torch.nn.Module, text: str, length: int, stride: int, bos: bool) -> tuple[float, int]:
    """Each scored token on its own, from the definition: its window is the first that reaches it."""
    ids = Tokenizer()(text, add_special_tokens=False)["input_ids"]
    total, count = 0.0, 0
    last = -1
    for start in range(0, len(ids) - length + 1, stride):
        for position in range(start, start + length):
            if position <= last:
                continue
            last = position
            before = [1] * bos + ids[start:position]
            if not before:
                continue
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([before])).logits[0, -1]
            total -= float(F.log_softmax(logits.double(), -1)[ids[position]])
            count += 1
    return total / count, count


@pytest.mark.parametrize(("length", "stride"), [(10, 10), (10, 4), (10, 1), (43, 43)])
@pytest.mark.parametrize("bos", [True, False])
def test_every_token_is_scored_once_with_the_context_of_its_window(length: int, stride: int, bos: bool) -> None:
    model = tiny("llama")
    windows = text_windows(TEXT, Tokenizer(), length=length, stride=stride, bos=bos)
    found = perplexity(model, windows)
    nll, tokens = by_hand(model, TEXT, length, stride, bos)
    assert found.tokens == tokens
    assert found.nll == pytest.approx(nll, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
    assert (found.kl, found.top1, found.float_perplexity) == (None, None, None)


def test_divergence_from_the_float_model() -> None:
    model, other = tiny("llama"), tiny("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    windows = text_windows(TEXT, Tokenizer(), length=10)
    found = perplexity(other, windows, against=model)
    p, q = (torch.log_softmax(m(windows.ids).logits[:, :-1].detach().double(), -1) for m in (model, other))
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.float_perplexity == pytest.approx(perplexity(model, windows).perplexity)
    assert found.perplexity == pytest.approx(perplexity(other, windows).perplexity)
    assert found.kl > 0


def test_a_model_against_itself() -> None:
    model = tiny("gemma3_text")
    found = perplexity(model, text_windows(TEXT, Tokenizer(), length=10), against=model)
    assert (found.kl, found.top1) == (pytest.approx(0, abs=1e-9), 1)
    assert found.float_perplexity == found.perplexity


def test_bos_is_put_where_the_tokenizer_does_it() -> None:
    assert text_windows(TEXT, Tokenizer(), length=10).bos == 1
    assert text_windows(TEXT, Tokenizer(adds_bos=False), length=10).bos is None
    with_bos = text_windows(TEXT, Tokenizer(adds_bos=False), length=10, bos=True)
    assert with_bos.ids.shape == (4, 11)
    assert with_bos.ids[:, 0].tolist() == [1] * 4
    assert "BOS (1) before each" in with_bos.describe()
    assert "no BOS" in text_windows(TEXT, Tokenizer(), length=10, bos=False).describe()


def test_a_limit_keeps_the_first_windows_and_a_short_text_is_one_window() -> None:
    windows = text_windows(TEXT, Tokenizer(), length=10, limit=2)
    assert len(windows) == 2
    assert torch.equal(windows.ids, text_windows(TEXT, Tokenizer(), length=10).ids[:2])
    assert text_windows("abc", Tokenizer(), length=10).ids.shape == (1, 4)


def test_progress_and_plain_values() -> None:
    told: list[tuple[str, int, int]] = []
    windows = text_windows(TEXT, Tokenizer(), length=20)
    found = perplexity(tiny("llama"), windows, progress=lambda *step: told.append(step))
    assert told == [("perplexity", 1, 2), ("perplexity", 2, 2)]
    assert found.to_dict()["windows"] == {"count": 2, "length": 20, "stride": 20, "bos": 1}


def test_other_ways_to_compute_logits() -> None:
    windows = text_windows(TEXT, Tokenizer(), length=10)
    model = tiny("llama")
    flat = perplexity(model, windows, logits=lambda _model, ids: torch.zeros(ids.shape[1], VOCABULARY))
    assert flat.perplexity == pytest.approx(VOCABULARY)


@pytest.mark.parametrize("stride", [0, 11, -1])
def test_strides_that_do_not_fit(stride: int) -> None:
    with pytest.raises(FewbitError, match="stride"):
        text_windows(TEXT, Tokenizer(), length=10, stride=stride)


def test_nothing_to_score() -> None:
    with pytest.raises(FewbitError, match=r"my\.txt holds no text"):
        text_windows("", Tokenizer(), name="my.txt")
    with pytest.raises(FewbitError, match="no text"):
        text_windows("a", Tokenizer(), bos=False)
    without = Tokenizer(adds_bos=False)
    without.bos_token_id = None
    with pytest.raises(FewbitError, match="no BOS token"):
        text_windows(TEXT, without, bos=True)


@pytest.mark.parametrize("family", ["bert", "whisper"])
def test_models_that_predict_no_next_token(family: str) -> None:
    with pytest.raises(FewbitError, match="causal language model"):
        perplexity(tiny(family), text_windows(TEXT, Tokenizer(), length=10))


def test_windows_longer_than_the_positions() -> None:
    with pytest.raises(FewbitError, match="64 positions"):
        perplexity(tiny("gpt2"), text_windows(TEXT * 3, Tokenizer(), length=64))


def test_outputs_that_are_not_finite() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(FewbitError, match="not finite"):
        perplexity(model, text_windows(TEXT, Tokenizer(), length=10))


def test_an_endless_perplexity_is_infinite() -> None:
    windows = TextWindows(torch.tensor([[1, 2]]), 1, 1, 1)
    found = perplexity(tiny("llama"), windows, logits=lambda _m, _i: torch.tensor([[0.0, 0.0, -1e4], [0, 0, 0]]))
    assert isinstance(found, Perplexity)
    assert found.perplexity == math.inf


def test_windows_in_which_no_token_is_scored_are_refused() -> None:
    windows = text_windows(TEXT, Tokenizer(), length=1, bos=False)
    with pytest.raises(FewbitError, match="no token is scored"):
        perplexity(tiny("llama"), windows)
