"""Text: windows of tokens that cover the text in order, with the special tokens the model expects."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.sources import TextOptions, load_data

CLS, SEP, FIRST = 2, 3, 5  # ids in the tokenizer of conftest.py; word w0 has id 5


def write(tmp_path: Path, words: int, name: str = "text.txt") -> Path:
    path = tmp_path / name
    path.write_text(" ".join(f"w{i % 50}" for i in range(words)), encoding="utf-8")
    return path


def windows(path: Path, tokenizer_dir: Path, length: int, **settings: Any) -> list[dict[str, torch.Tensor]]:
    options = TextOptions(length=length)
    return list(load_data(path, tokenizer_dir=tokenizer_dir, text_options=options, **settings))  # type: ignore[arg-type]


def test_windows_cover_the_text_in_order(tmp_path: Path, tokenizer_dir: Path) -> None:
    parts = windows(write(tmp_path, 43), tokenizer_dir, 10, batch_size=2)
    assert [tuple(p["input_ids"].shape) for p in parts] == [(2, 10), (2, 10), (1, 10)]
    ids = torch.cat([p["input_ids"] for p in parts])
    assert ids.dtype == torch.int64
    assert (ids[:, 0] == CLS).all()
    assert (ids[:, -1] == SEP).all()
    assert ids[:, 1:-1].flatten().tolist() == [FIRST + i for i in range(40)]  # the last three words are dropped
    assert all((p["attention_mask"] == 1).all() and p["attention_mask"].shape == p["input_ids"].shape for p in parts)


def test_a_short_text_is_one_short_window(tmp_path: Path, tokenizer_dir: Path) -> None:
    (part,) = windows(write(tmp_path, 3), tokenizer_dir, 128)
    assert part["input_ids"].tolist() == [[CLS, FIRST, FIRST + 1, FIRST + 2, SEP]]


def test_windows_never_exceed_the_models_positions(tmp_path: Path, tokenizer_dir: Path) -> None:
    model = nn.Identity()
    model.config = SimpleNamespace(max_position_embeddings=7)  # type: ignore[assignment]
    (part,) = windows(write(tmp_path, 20), tokenizer_dir, 128, model=model)
    assert part["input_ids"].shape == (4, 7)


def test_a_limit_takes_evenly_spaced_windows(tmp_path: Path, tokenizer_dir: Path) -> None:
    (part,) = windows(write(tmp_path, 40), tokenizer_dir, 10, limit=2)
    assert part["input_ids"][:, 1].tolist() == [FIRST, FIRST + 16]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no text"),
        (b" \n\t ", "holds no text"),
        (b"\xff\xfe\x00bad", "is no UTF-8 text"),
    ],
)
def test_files_without_text_are_told(tmp_path: Path, tokenizer_dir: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(FewbitError, match=told) as caught:
        load_data(tmp_path / "x.txt", tokenizer_dir=tokenizer_dir)
    assert "x.txt" in str(caught.value)


def test_windows_without_room_are_told(tmp_path: Path, tokenizer_dir: Path) -> None:
    with pytest.raises(FewbitError, match="windows of 2 tokens have no room for text: 2 are special"):
        windows(write(tmp_path, 9), tokenizer_dir, 2)


def test_a_slow_tokenizer_is_told(tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers.BertTokenizer, "is_fast", False)
    with pytest.raises(FewbitError, match=r"without a fast version; save one as tokenizer\.json"):
        load_data(write(tmp_path, 9), tokenizer_dir=tokenizer_dir)


def test_a_missing_tokenizer_is_told(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs fewbit[llm]")
    with pytest.raises(FewbitError, match="name a folder that holds the model's tokenizer with --tokenizer"):
        load_data(write(tmp_path, 9))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FewbitError, match="holds no tokenizer that can be loaded"):
        load_data(tmp_path / "text.txt", tokenizer_dir=tmp_path / "empty")
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FewbitError, match="holds no tokenizer that can be loaded"):
        load_data(tmp_path / "text.txt", tokenizer_dir=tmp_path / "empty")
