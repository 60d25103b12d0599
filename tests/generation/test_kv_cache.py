"""The quantized cache in `transformers`: every family generates with it, windows slide, beams move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import CAUSAL, inputs, tiny
from transformers import DynamicCache

import fewbit
from fewbit.errors import FewbitError
from fewbit.generation.decode import cache_argument
from fewbit.generation.kv_cache import QuantizedCache, QuantizedLayer, quantized_cache
from fewbit.generation.kv_options import KVOptions

ALL_FLOAT = KVOptions(8, block=8, window=1000)
EARLY = KVOptions(8, block=8, window=0)


def states(tokens: int, batch: int = 2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, tokens, 8, generator=generator), torch.randn(batch, 2, tokens, 8, generator=generator)


def write(model: Any, cache: Any, ids: torch.Tensor, **settings: Any) -> torch.Tensor:
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    tokens: torch.Tensor = model.generate(ids, **{cache_argument(model): cache}, **settings)
    return tokens


@pytest.mark.parametrize("window", [None, 6, 7, 16, 100])
@pytest.mark.parametrize("options", [ALL_FLOAT, EARLY, KVOptions(8, block=8, window=5)])
@pytest.mark.parametrize("parts", [[12, 1, 1, 1], [1] * 30, [3, 20, 1, 5, 1]])
def test_shapes_and_masks_are_those_of_the_float_cache(
    window: int | None, options: KVOptions, parts: list[int]
) -> None:
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    theirs = DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)
    ours = QuantizedLayer(options, window)
    for seed, tokens in enumerate(parts):
        assert ours.get_mask_sizes(tokens) == theirs.get_mask_sizes(tokens)
        new = states(tokens, seed=seed)
        found, expected = ours.update(*new), theirs.update(*new)
        for one, other in zip(found, expected):
            assert one.shape == other.shape
            assert torch.equal(one[..., -tokens:, :], new[0 if one is found[0] else 1])
            assert (one - other).abs().max() < (1e-9 if options is ALL_FLOAT else 0.03)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_what_left_the_window_is_quantized_and_takes_less_memory() -> None:
    float_layer, layer = QuantizedLayer(ALL_FLOAT), QuantizedLayer(KVOptions(4, block=8, window=8))
    new = states(128)
    float_layer.update(*new)
    layer.update(*new)
    assert layer.keys is not None
    assert layer.keys.shape[-2] == 8
    assert layer.nbytes < float_layer.nbytes / 3
    keys, values = layer.update(*states(1))
    assert 0.01 < float((keys[..., :120, :] - new[0][..., :120, :]).abs().max()) < 0.6
    assert torch.equal(keys[..., 120:128, :], new[0][..., 120:, :])
    assert torch.equal(values[..., 120:128, :], new[1][..., 120:, :])


def test_a_sliding_layer_forgets() -> None:
    layer = QuantizedLayer(EARLY, sliding_window=20)
    for _ in range(100):
        layer.update(*states(1))
    stored = layer._stored_keys.tokens
    assert layer.keys is not None
    assert stored + layer.keys.shape[-2] <= 19 + 8
    long_prompt = QuantizedLayer(EARLY, sliding_window=20)
    long_prompt.update(*states(500))
    assert long_prompt._stored_keys.tokens <= 24


@pytest.mark.parametrize("family", CAUSAL)
def test_every_family_writes_the_same_with_a_float_tail(family: str) -> None:
    model, ids = tiny(family), inputs(family)["input_ids"]
    expected = write(model, DynamicCache(config=model.config), ids)
    assert torch.equal(write(model, quantized_cache(model, ALL_FLOAT), ids), expected)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gemma2", "gpt2", "mistral"])
def test_predictions_with_8_bits_are_near(family: str) -> None:
    model, ids = tiny(family), inputs(family, length=40)["input_ids"]
    cache = quantized_cache(model, EARLY)
    with torch.no_grad():
        expected = model(ids).logits
        found = torch.cat(
            [model(input_ids=part, **{cache_argument(model): cache}).logits for part in ids.split(1, 1)], dim=1
        )
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.02
    assert cache.get_seq_length() == 40
    assert cache.nbytes > 0


def test_quantized_models_write_with_a_quantized_cache() -> None:
    model = tiny("gemma3_text")
    for scheme in ("W4A16-g16", "W4A8-dynamic", "W8A8-dynamic"):
        q = fewbit.quantize(model, scheme)
        out = write(q, quantized_cache(q, KVOptions(4, block=8, window=8)), inputs("gemma3_text")["input_ids"])
        assert out.shape == (2, 32)


@pytest.mark.parametrize("options", [EARLY, KVOptions(4, block=8, window=8)])
def test_beams_move_with_their_past(options: KVOptions) -> None:
    """The same order of the batch, before or after what is stored."""
    first, second = QuantizedLayer(options), QuantizedLayer(options)
    new, more, order = states(30), states(1, seed=1), torch.tensor([1, 0])
    first.update(*new)
    first.reorder_cache(order)
    second.update(*(each[order] for each in new))
    for one, other in zip(first.update(*more), second.update(*more)):
        assert torch.equal(one, other)
    model, ids = tiny("llama"), inputs("llama")["input_ids"]
    found = write(model, quantized_cache(model, ALL_FLOAT), ids, num_beams=3)
    assert torch.equal(found, write(model, DynamicCache(config=model.config), ids, num_beams=3))


def test_the_batch_is_repeated() -> None:
    layer = QuantizedLayer(EARLY)
    layer.update(*states(20, batch=1))
    layer.batch_repeat_interleave(3)
    keys, _ = layer.update(*states(1, batch=3))
    assert torch.equal(keys[0, :, :20], keys[2, :, :20])


@pytest.mark.parametrize("removed", [1, 5, 9, 25, 30])
def test_cropping_takes_back_the_newest_tokens(removed: int) -> None:
    layer = QuantizedLayer(KVOptions(8, block=8, window=4))
    layer.update(*states(30))
    before, _ = layer.update(*states(0))
    layer.crop(-removed)
    assert layer.get_seq_length() == 30 - removed
    after, _ = layer.update(*states(0))
    assert torch.equal(after, before[..., : 30 - removed, :])
    layer.crop(0)
    with pytest.raises(FewbitError, match="negative"):
        layer.crop(1)


def test_assisted_decoding_crops() -> None:
    model, ids = tiny("llama"), inputs("llama", batch=1)["input_ids"]
    expected = write(model, DynamicCache(config=model.config), ids)
    assert torch.equal(write(model, quantized_cache(model, ALL_FLOAT), ids, prompt_lookup_num_tokens=3), expected)


def test_a_full_sliding_window_cannot_be_cropped() -> None:
    layer = QuantizedLayer(EARLY, sliding_window=6)
    layer.update(*states(8))
    with pytest.raises(FewbitError, match="sliding window"):
        layer.crop(-1)


def test_reset_forgets() -> None:
    model = tiny("llama")
    cache = QuantizedCache(model.config, EARLY)
    model(**inputs("llama"), **{cache_argument(model): cache})
    cache.reset()
    assert cache.get_seq_length() == 0
    assert cache.nbytes == 0
    model(**inputs("llama"), **{cache_argument(model): cache})
    assert cache.get_seq_length() == 12


def test_whisper_quantizes_the_decoders_own_part() -> None:
    model = tiny("whisper")
    cache = quantized_cache(model, ALL_FLOAT)
    features = inputs("whisper")["input_features"]
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    out = model.generate(features, **{cache_argument(model): cache}, **settings)
    assert torch.equal(out, model.generate(features, **settings))
    assert isinstance(cache.self_attention_cache.layers[0], QuantizedLayer)
    assert not isinstance(cache.cross_attention_cache.layers[0], QuantizedLayer)


def test_models_of_other_libraries_are_refused() -> None:
    with pytest.raises(FewbitError, match="model of transformers"):
        quantized_cache(torch.nn.Linear(2, 2))
