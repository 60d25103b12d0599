"""``fewbit generate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny, tiny_folder, tokenizer
from transformers import GenerationConfig

Command = Callable[..., Any]
PROMPT = "The quick brown fox"


@pytest.fixture
def llama(folder: Path) -> str:
    return tiny_folder(folder / "llama", "llama").name


def expected(count: int) -> str:
    """What transformers writes."""
    model, words = tiny("llama"), tokenizer()
    settings = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=2, pad_token_id=0)
    ids = torch.tensor([words(PROMPT)["input_ids"]])
    written = model.generate(ids, generation_config=settings)[0, ids.shape[1] :]
    text: str = words.decode(written, skip_special_tokens=True)
    return text


def test_the_text_comes_on_stdout_and_the_speed_on_stderr(command: Command, llama: str) -> None:
    done = command("generate", llama, "--prompt", PROMPT, "--tokens", "12")
    assert done.code == 0, done.stderr
    assert done.stdout == expected(12) + "\n"
    assert "tokens/s" in done.stderr
    assert "keys and values: float" in done.stderr


def test_json_holds_text_and_speed(command: Command, folder: Path, llama: str) -> None:
    (folder / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    done = command("generate", llama, "--prompt-file", "prompt.txt", "-n", "12", "--json", "--threads", "1")
    assert done.code == 0, done.stderr
    document = done.document
    assert document["text"] == expected(12)
    assert (document["prompt_tokens"], document["threads"], document["dtype"]) == (20, 1, "float32")
    assert document["tokens"] == 12
    assert document["tokens_per_second"] > 0


def test_quantized_models_write_with_a_quantized_cache(command: Command, llama: str) -> None:
    assert command("quantize", llama, "-r", "W4A16-g16", "-o", "small").code == 0
    arguments = ("generate", "small", "--prompt", PROMPT * 4, "--tokens", "12", "--tokenizer", llama)
    done = command(*arguments, "--kv", "int4-b8-w8", "--json")
    assert done.code == 0, done.stderr
    assert done.document["kv"].startswith("int4: keys per channel")
    assert done.document["kv_bytes"] > 0
    bfloat = command(*arguments, "--kv", "int8", "--dtype", "bfloat16", "--json")
    assert bfloat.document["dtype"] == "bfloat16"


def test_sampling_follows_its_seed(command: Command, llama: str) -> None:
    def write(seed: str) -> str:
        arguments = ("--temperature", "3", "--top-p", "0.95", "--seed", seed, "-n", "20", "--json")
        text: str = command("generate", llama, "--prompt", PROMPT, *arguments).document["text"]
        return text

    assert write("1") == write("1")
    assert write("1") != write("2")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("llama",), "--prompt"),
        (("llama", "--prompt", "a", "--prompt-file", "b"), "one of them"),
        (("llama", "--prompt-file", "nothing.txt"), "nothing.txt"),
        (("llama", "--prompt", "a", "--kv", "int5"), "2, 3, 4 or 8 bits"),
        (("llama", "--prompt", "a", "--kv", "fp8"), "no cache of keys and values"),
        (("llama", "--prompt", "a", "--dtype", "int8"), "--dtype"),
        (("llama", "--prompt", "a", "--chat"), "chat template"),
        (("llama", "--prompt", "a", "--top-p", "0"), "top-p"),
        (("nets:cnn", "--prompt", "a"), "causal language model"),
        (("nothing", "--prompt", "a"), "does not exist"),
    ],
)
def test_what_cannot_be_written(command: Command, llama: str, arguments: tuple[str, ...], told: str) -> None:
    done = command("generate", *arguments)
    assert done.code == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_the_end_of_the_positions_is_told(command: Command, llama: str) -> None:
    done = command("generate", llama, "--prompt", PROMPT, "--tokens", "100000", "--json")
    assert done.code == 0
    assert "the text stopped where the model's positions end" in done.document["notes"]
    done = command("generate", llama, "--prompt", PROMPT, "--tokens", "3", "--json")
    assert not done.document["notes"]


@pytest.mark.parametrize("seed", ["-1", "9223372036854775808", "9" * 30])
def test_a_seed_that_is_no_seed_is_told(command: Command, llama: str, seed: str) -> None:
    done = command("generate", llama, "--prompt", PROMPT, "--seed", seed)
    assert done.code == 2
    assert "Invalid value for '--seed'" in done.stderr
