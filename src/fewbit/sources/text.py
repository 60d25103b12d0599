"""Text files, cut into windows of tokens.

The text is tokenized as one, and cut into windows of ``length`` tokens, among them the special tokens that
the model expects around every sequence (``[CLS]`` … ``[SEP]``, ``<bos>``). Windows do not overlap. What is
left at the end is dropped, unless there is nothing
else: so no batch needs padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.errors import FewbitError, require
from fewbit.sources.batches import Batch, Batches, spread
from fewbit.wording import counted

SUFFIXES = (".txt", ".text", ".md")


@dataclass(frozen=True)
class TextOptions:
    """How text is cut.

    Attributes:
        length: Tokens a window; never more than the model has positions for.
    """

    length: int = 128


def load_text(
    path: Path,
    model: nn.Module | None,
    *,
    batch_size: int,
    limit: int | None,
    tokenizer_dir: Path | None,
    options: TextOptions,
) -> Batches:
    """Batches of token windows.

    Returns:
        Dictionaries ``{"input_ids": int64 [N, T], "attention_mask": int64 [N, T]}``.

    Raises:
        FewbitError: No tokenizer folder, a file that is not UTF-8 text, or one without text.
        MissingExtraError: transformers is not installed.
    """
    if tokenizer_dir is None:
        raise FewbitError(f"{path} is text: name a folder that holds the model's tokenizer with --tokenizer")
    text = "\n\n".join(_read(file) for file in files(path))
    ids = windows(text, load_tokenizer(tokenizer_dir), _length(options.length, model), str(path))
    return _batches(ids[spread(len(ids), limit)], batch_size, path.name, (limit, options.length))


def text_batches(
    texts: Sequence[str], tokenizer_dir: Path, model: nn.Module | None, *, limit: int | None, options: TextOptions
) -> Batches:
    """Batches of one window each of texts at hand, as :func:`load_text` makes them of a file.

    Raises:
        FewbitError: There is no tokenizer or no text.
    """
    joined = "\n\n".join(texts)
    ids = windows(joined, load_tokenizer(tokenizer_dir), _length(options.length, model), "the calibration data")
    return _batches(ids[spread(len(ids), limit)], 1, f"{len(texts)} texts", (limit, options.length))


def files(path: Path) -> list[Path]:
    """The text files that a path means: itself, or those in a folder, in the order of their names."""
    if not path.is_dir():
        return [path]
    return sorted(each for each in path.rglob("*") if each.is_file() and each.suffix.lower() in SUFFIXES)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FewbitError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FewbitError(f"{path} is no UTF-8 text: {error}") from error


def _batches(ids: torch.Tensor, batch_size: int, name: str, asked: tuple[int | None, int]) -> Batches:
    count, length = ids.shape
    less = (asked[0] is not None and count < asked[0]) or length < asked[1]
    wanted = f"{asked[1]} tokens" if asked[0] is None else f"{asked[0]} of {asked[1]}"
    note = f" ({wanted} were asked for; the text or the model's positions end before)" if less else ""

    def make(start: int, stop: int) -> Batch:
        part = ids[start:stop]
        return {"input_ids": part, "attention_mask": torch.ones_like(part)}

    return Batches(
        len(ids),
        batch_size,
        make,
        describe=f"{counted(count, 'window')} of {length} tokens of {name}{note}",
    )


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a Hugging Face folder, read offline.

    Raises:
        FewbitError: The folder holds none, or a damaged one.
        MissingExtraError: transformers is not installed.
    """
    transformers = require("transformers", extra="llm")
    auto = transformers.AutoTokenizer
    try:
        tokenizer = auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on damaged files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewbitError(f"{folder} holds no tokenizer that can be loaded: {reason}") from error
    if not tokenizer.is_fast:  # only those of the tokenizers library cut a text into windows
        raise FewbitError(f"{folder} holds a tokenizer without a fast version; save one as tokenizer.json")
    return tokenizer


def windows(text: str, tokenizer: Any, length: int, name: str) -> torch.Tensor:
    """Cut a text into windows of tokens.

    Returns:
        Int64 [windows, length]; one shorter row if the whole text has fewer than `length` tokens.

    Raises:
        FewbitError: The text is empty, or `length` leaves no room beside the special tokens.
    """
    special = len(tokenizer("")["input_ids"])
    if length <= special:
        raise FewbitError(f"windows of {length} tokens have no room for text: {special} are special tokens")
    if not text.strip():
        raise FewbitError(f"{name} holds no text")
    encoded = tokenizer(text, truncation=True, max_length=length, return_overflowing_tokens=True)
    rows: list[list[int]] = encoded["input_ids"]
    full = [row for row in rows if len(row) == length]
    return torch.tensor(full or rows[:1], dtype=torch.int64)


def _length(wanted: int, model: nn.Module | None) -> int:
    """The window's length, bounded by the positions the model has."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min(wanted, positions) if isinstance(positions, int) and positions > 0 else wanted
