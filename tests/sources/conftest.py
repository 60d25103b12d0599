"""Tiny pictures and a tiny tokenizer, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

Paint = Callable[..., Path]


@pytest.fixture
def paint() -> Paint:
    """Write a picture of noise; the seed decides what it shows."""
    image = pytest.importorskip("PIL.Image", reason="needs fewbit[images]")

    def make(path: Path, width: int = 40, height: int = 30, seed: int = 0, mode: str = "RGB") -> Path:
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).convert(mode).save(path)
        return path

    return make


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    """A folder with a BERT tokenizer of the words w0 … w49."""
    transformers = pytest.importorskip("transformers", reason="needs fewbit[llm]")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    transformers.BertTokenizer(vocab={w: i for i, w in enumerate(words)}).save_pretrained(folder)
    return folder
