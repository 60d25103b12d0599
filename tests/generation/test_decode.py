"""Generation token by token against transformers' own, and predictions through a cache."""

from __future__ import annotations

import pytest
import torch
from tiny_models import inputs, tiny
from transformers import DynamicCache

from fewbit.errors import FewbitError
from fewbit.generation.decode import Sampling, Speed, cached_logits, check_generates, generate
from fewbit.generation.kv_cache import quantized_cache
from fewbit.generation.kv_options import KVOptions


def ids(family: str = "llama", length: int = 12) -> torch.Tensor:
    return inputs(family, batch=1, length=length)["input_ids"]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_the_likeliest_tokens_are_those_of_transformers(family: str) -> None:
    model = tiny(family)
    settings = {"max_new_tokens": 15, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(ids(family), **settings)[0, 12:].tolist()
    speed = Speed()
    found = list(generate(model, ids(family), DynamicCache(config=model.config), limit=15, speed=speed))
    assert found == expected
    assert (speed.prompt_tokens, speed.tokens) == (12, 15)
    assert speed.prompt_seconds > 0
    assert speed.tokens_per_second == pytest.approx(14 / speed.seconds)


def test_a_stop_token_ends_the_text() -> None:
    model = tiny("llama")
    cache = DynamicCache(config=model.config)
    written = list(generate(model, ids(), cache, limit=15))
    stop = written[6]
    shorter = list(generate(model, ids(), DynamicCache(config=model.config), limit=15, stop=frozenset({stop})))
    assert shorter == written[: written.index(stop)]


def test_sampling_follows_its_seed() -> None:
    model = tiny("llama")

    def write(**settings: float) -> list[int]:
        sampling = Sampling(**settings)  # type: ignore[arg-type]
        return list(generate(model, ids(), DynamicCache(config=model.config), limit=20, sampling=sampling))

    assert write(temperature=2.0, seed=1) == write(temperature=2.0, seed=1)
    assert write(temperature=2.0, seed=1) != write(temperature=2.0, seed=2)
    assert write(temperature=2.0, top_p=1e-6) == write()


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_that_makes_no_sense(settings: dict[str, float]) -> None:
    with pytest.raises(FewbitError):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_chunks_up_to_the_window_see_what_single_tokens_see(family: str) -> None:
    model, tokens = tiny(family), ids(family, 40)
    options = KVOptions(4, block=8, window=8)
    one, eight = (cached_logits(model, tokens, quantized_cache(model, options), chunk) for chunk in (1, 8))
    assert torch.allclose(one, eight, atol=1e-4)
    with torch.no_grad():
        exact = model(tokens).logits[0]
    assert (one - exact).norm() > 10 * (one - eight).norm()


def test_the_text_ends_where_the_positions_do() -> None:
    model = tiny("gpt2")  # 64 positions

    def written(prompt: int) -> int:
        cache = DynamicCache(config=model.config)
        return len(list(generate(model, ids("gpt2", prompt), cache, limit=100)))

    assert written(60) == 5
    assert written(64) == 1
    with pytest.raises(FewbitError, match="65 tokens, the model only 64 positions"):
        written(65)


def test_what_does_not_write() -> None:
    for family in ("bert", "whisper"):
        with pytest.raises(FewbitError, match="causal language model"):
            check_generates(tiny(family))
    with pytest.raises(FewbitError, match="no tokens"):
        next(generate(tiny("llama"), torch.zeros(1, 0, dtype=torch.int64), None, limit=1))
