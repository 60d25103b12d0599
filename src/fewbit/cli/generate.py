"""``fewbit generate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.cli.evaluate import find_tokenizer, read_text
from fewbit.cli.session import Session
from fewbit.errors import FewbitError
from fewbit.wording import counted

if TYPE_CHECKING:
    from torch import Tensor, nn

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Wish:
    """What is to be written, and how."""

    source: str
    prompt: str | None
    prompt_file: Path | None
    tokens: int
    kv: str | None
    temperature: float
    top_p: float
    seed: int
    chat: bool
    dtype: str
    threads: int | None
    tokenizer: Path | None


def run_generate(session: Session, wish: Wish) -> None:
    """Write text after a prompt, token by token, and tell the speed.

    Raises:
        FewbitError: The model, the prompt or an option cannot be used.
    """
    prompt = _prompt(wish)
    if wish.dtype not in _DTYPES:
        raise FewbitError(f"--dtype is one of {', '.join(_DTYPES)}, not {wish.dtype!r}")
    import torch

    from fewbit.generation.decode import Sampling, Speed, check_generates, generate
    from fewbit.generation.kv_options import KVOptions
    from fewbit.sources import load_model

    options = None if wish.kv in (None, "float") else KVOptions.parse(str(wish.kv))
    sampling = Sampling(wish.temperature, wish.top_p, wish.seed)
    if wish.threads is not None:
        torch.set_num_threads(wish.threads)
    with session.stage("load the model"):
        loaded = load_model(wish.source)
    check_generates(loaded.model)
    model = loaded.model.to(getattr(torch, wish.dtype))
    tokenizer = find_tokenizer(wish.tokenizer, loaded)
    ids, cache, speed = _encode(tokenizer, prompt, wish.chat), _cache(model, options), Speed()
    session.stop_bars()
    stream = _Stream(tokenizer, None if session.as_json else session.stdout)
    tokens = generate(
        model, ids, cache, limit=wish.tokens, sampling=sampling, stop=_stop_tokens(model, tokenizer), speed=speed
    )
    for token in tokens:
        stream.put(token)
    stream.end()
    notes = [*loaded.notes, *(["the text stopped where the model's positions end"] if speed.full else [])]
    document = {
        "source": wish.source,
        "prompt": prompt,
        "text": stream.text,
        "kv": "float" if options is None else options.describe(),
        "kv_bytes": getattr(cache, "nbytes", None),
        "dtype": wish.dtype,
        "threads": torch.get_num_threads(),
        "prompt_tokens": speed.prompt_tokens,
        "prompt_seconds": speed.prompt_seconds,
        "tokens": speed.tokens,
        "tokens_per_second": speed.tokens_per_second,
        "notes": notes,
    }
    print(*notes, _told(document), sep="\n", file=sys.stderr)
    session.result(document)


def _prompt(wish: Wish) -> str:
    if (wish.prompt is None) == (wish.prompt_file is None):
        raise FewbitError("name the text to go on from with --prompt or --prompt-file, one of them")
    return read_text(wish.prompt_file) if wish.prompt_file is not None else str(wish.prompt)


def _encode(tokenizer: Any, prompt: str, chat: bool) -> Tensor:
    import torch

    if not chat:
        return torch.tensor([tokenizer(prompt)["input_ids"]], dtype=torch.int64)
    if not getattr(tokenizer, "chat_template", None):
        raise FewbitError("the tokenizer has no chat template; leave out --chat")
    turns = [{"role": "user", "content": prompt}]
    encoded: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
    return torch.tensor([encoded["input_ids"]], dtype=torch.int64)


def _cache(model: nn.Module, options: Any) -> Any:
    from transformers import DynamicCache

    from fewbit.generation.kv_cache import quantized_cache

    config: Any = model.config
    return DynamicCache(config=config) if options is None else quantized_cache(model, options)


def _stop_tokens(model: nn.Module, tokenizer: Any) -> frozenset[int]:
    settings: Any = getattr(model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    tokens = found if isinstance(found, list) else [found]
    return frozenset(token for token in (*tokens, tokenizer.eos_token_id) if token is not None)


class _Stream:
    """Text as it comes: what a token adds is printed once it is whole characters."""

    def __init__(self, tokenizer: Any, stdout: Any) -> None:
        self.tokenizer, self.stdout = tokenizer, stdout
        self.tokens: list[int] = []
        self.text = ""

    def put(self, token: int) -> None:
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        if not text.endswith("�"):  # the first bytes of a character
            self._show(text)

    def end(self) -> None:
        self._show(self.tokenizer.decode(self.tokens, skip_special_tokens=True))
        if self.stdout is not None:
            print(file=self.stdout, flush=True)

    def _show(self, text: str) -> None:
        if self.stdout is not None and text.startswith(self.text):
            print(text[len(self.text) :], end="", file=self.stdout, flush=True)
        self.text = text


def _told(document: dict[str, Any]) -> str:
    from fewbit.report.text import seconds_text

    threads, prompt = document["threads"], seconds_text(document["prompt_seconds"])
    speed = f"{document['tokens']} tokens at {document['tokens_per_second']:.1f} tokens/s"
    how = f"{counted(threads, 'thread')}, {document['dtype']}"
    return (
        f"{speed} ({how}); the prompt's {document['prompt_tokens']} tokens took {prompt}; keys and values: "
        f"{document['kv']}"
    )
