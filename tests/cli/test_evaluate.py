"""``fewbit evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import tiny, tiny_folder, tokenizer

from fewbit.evaluate.perplexity import perplexity, text_windows

Command = Callable[..., Any]
TEXT = "The quick brown fox jumps over the lazy dog. " * 3


@pytest.fixture
def llama(folder: Path) -> str:
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    return tiny_folder(folder / "llama", "llama").name


def test_json_is_what_the_function_says(command: Command, llama: str) -> None:
    arguments = ("--perplexity", "text.txt", "--tokens", "20", "--stride", "8", "--windows", "3", "--json")
    done = command("evaluate", llama, "--against", llama, *arguments)
    assert done.code == 0, done.stderr
    windows = text_windows(TEXT, tokenizer(), length=20, stride=8, limit=3)
    expected = perplexity(tiny("llama"), windows)
    document = done.document
    assert document["perplexity"] == pytest.approx(expected.perplexity, rel=1e-5)
    assert document["tokens"] == expected.tokens == 20 + 8 + 8
    assert document["windows"] == {"count": 3, "length": 20, "stride": 8, "bos": 1}
    assert (document["kl"], document["top1"]) == (pytest.approx(0, abs=1e-6), 1)


def test_people_see_how_the_text_was_cut(command: Command, llama: str) -> None:
    done = command("evaluate", llama, "--perplexity", "text.txt", "--tokens", "20", "--no-bos")
    assert "stride 20, no BOS" in done.stdout
    assert "KL" not in done.stdout
    assert "KL" in command("evaluate", llama, "--perplexity", "text.txt", "--against", llama).stdout


def test_a_quantized_model_finds_the_tokenizer_of_its_float_model(command: Command, llama: str) -> None:
    assert command("quantize", llama, "-r", "W4A16-g16", "-o", "small").code == 0
    arguments = ("evaluate", "small", "--perplexity", "text.txt", "--tokens", "20")
    for found in (("--against", llama), ("--tokenizer", llama)):
        done = command(*arguments, *found, "--json")
        assert done.code == 0, done.stderr
        assert done.document["kl"] is None or done.document["kl"] > 1e-4


def test_a_quantized_cache_is_measured(command: Command, llama: str) -> None:
    arguments = ("evaluate", llama, "--perplexity", "text.txt", "--tokens", "40", "--against", llama, "--json")
    exact, near, far = (command(*arguments, "--kv", kv).document for kv in ("float", "int8-b8-w8", "int2-b8-w8"))
    assert exact["kv"] == "float"
    assert near["kv"].startswith("int8: keys per channel")
    assert exact["kl"] < near["kl"] < far["kl"]
    assert near["perplexity"] == pytest.approx(exact["perplexity"], rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nets:cnn", "--perplexity", "text.txt"), "no tokenizer"),
        (("nets:cnn", "--perplexity", "text.txt", "--tokenizer", "llama"), "causal language model"),
        (("llama", "--perplexity", "nothing.txt"), "nothing.txt cannot be read"),
        (("llama", "--perplexity", "pictures.npy"), "UTF-8"),
        (("llama", "--perplexity", "none.txt"), "none.txt cannot be read: No such file"),
        (("llama", "--perplexity", "text.txt", "--tokens", "8", "--stride", "9"), "stride"),
        (("llama", "--perplexity", "text.txt", "--kv", "int9"), "2, 3, 4 or 8 bits"),
        (("llama",), "--perplexity"),
    ],
)
def test_what_cannot_be_evaluated(command: Command, llama: str, arguments: tuple[str, ...], told: str) -> None:
    done = command("evaluate", *arguments)
    assert done.code == 2
    assert told in done.stderr or told in done.stdout
