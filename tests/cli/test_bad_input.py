"""Whatever the user hands in, the answer is one clear sentence, exit code 2, and no output left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Command = Callable[..., Any]  # arguments in, an Outcome out
QUANTIZE = ("quantize", "nets:cnn", "-o", "out")
WITH_DATA = (*QUANTIZE, "--data", "pictures.npy")


@pytest.fixture
def prepared(folder: Path) -> Path:
    """Files that are wrong in one way each."""
    np.save(folder / "empty.npy", np.zeros((0, 3, 8, 8), np.float32))
    np.save(folder / "nan.npy", np.full((4, 3, 8, 8), np.nan, np.float32))
    np.save(folder / "shape.npy", np.zeros((4, 5, 8, 8), np.float32))
    (folder / "broken.npy").write_bytes((folder / "pictures.npy").read_bytes()[:200])
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("some words")
    (folder / "unknown.toml").write_text('scheme = "W8A8"\ncalibratr = "mse"\n')
    (folder / "rule.toml").write_text('scheme = "W8A8"\n[[rule]]\nmatch = "lm_head"\nskip = true\n')
    (folder / "syntax.toml").write_text("scheme = W8A8\n")
    (folder / "raises.py").write_text("def net():\n    raise KeyError('weights')\n\n\ndef number():\n    return 3\n")
    (folder / "file").write_text("x")
    return folder


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("quantize", "nets:broken", "-o", "out", "-r", "W8A16"), "holds NaN"),
        (("quantize", "nets:broken", "-o", "out", "--data", "pictures.npy"), "NaN"),
        ((*QUANTIZE, "--data", "empty.npy"), "empty.npy"),
        ((*QUANTIZE, "--data", "empty"), "empty"),
        ((*QUANTIZE, "--data", "nan.npy"), "NaN"),
        ((*QUANTIZE, "--data", "shape.npy"), "batch 1"),
        ((*QUANTIZE, "--data", "broken.npy"), "broken.npy"),
        ((*QUANTIZE, "--data", "missing.npy"), "missing.npy does not exist"),
        ((*QUANTIZE, "--data", "text.txt"), "tokenizer"),
        ((*QUANTIZE, "--data", "file"), "file"),
        (QUANTIZE, "--data, or use W8A8-dynamic"),
        ((*WITH_DATA, "-r", "unknown.toml"), "'calibratr'; did you mean 'calibrator'?"),
        ((*WITH_DATA, "-r", "rule.toml"), "'lm_head' matches no layer"),
        ((*WITH_DATA, "-r", "syntax.toml"), "syntax.toml"),
        ((*WITH_DATA, "-r", "missing.toml"), "missing.toml"),
        ((*WITH_DATA, "-r", "W9A8"), "int9"),
        ((*WITH_DATA, "-r", "nonsense"), "'nonsense' is no scheme"),
        ((*WITH_DATA, "--algorithm", "magic"), "'magic'; there are"),
        ((*WITH_DATA, "--calibrator", "magic"), "'magic'"),
        ((*WITH_DATA, "--format", "magic"), "'magic'"),
        ((*WITH_DATA, "--mean", "x"), "--mean takes numbers"),
        (("quantize", "nets:nothing", "-o", "out", "-r", "W8A16"), "nets has no attribute 'nothing'"),
        (("quantize", "nothing:cnn", "-o", "out", "-r", "W8A16"), "nothing"),
        (("quantize", "raises:net", "-o", "out", "-r", "W8A16"), "raises:net() raised KeyError"),
        (("quantize", "raises:number", "-o", "out", "-r", "W8A16"), "int"),
        (("quantize", "missing", "-o", "out", "-r", "W8A16"), "missing does not exist"),
        (("quantize", "empty", "-o", "out", "-r", "W8A16"), "empty"),
        (("quantize", "file", "-o", "out", "-r", "W8A16"), "file"),
        (("quantize", "nets:cnn", "-o", "file", "-r", "W8A16"), "file is a file"),
        (("quantize", "nets:cnn", "-o", "file/out", "-r", "W8A16"), "file"),
        (("inspect", "missing"), "missing does not exist"),
    ],
)
def test_bad_input(
    command: Command,
    prepared: Path,
    left_behind: Callable[[Path], list[str]],
    arguments: tuple[str, ...],
    told: str,
) -> None:
    before = left_behind(prepared)
    for as_json in (False, True):
        done = command(*arguments, "--json") if as_json else command(*arguments)
        sentences = [line for line in done.stderr.splitlines() if line.startswith("fewbit: ")]
        assert done.code == 2, done.stderr
        assert len(sentences) == 1
        assert told in sentences[0]
        assert "Traceback" not in done.stderr
        assert done.document == {"error": sentences[0].removeprefix("fewbit: ")} if as_json else done.stdout == ""
        assert left_behind(prepared) == before


def damage(folder: Path, how: str) -> None:
    weights, manifest = folder / "model.safetensors", folder / "fewbit.json"
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "flipped bit":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 4
        weights.write_bytes(bytes(data))
    elif how == "truncated manifest":
        manifest.write_bytes(manifest.read_bytes()[:-10])
    elif how == "changed manifest":
        manifest.write_bytes(manifest.read_bytes().replace(b'"int8', b'"int7', 1))
    elif how == "no weights":
        weights.unlink()
    else:
        assert how == "newer version"
        manifest.write_bytes(manifest.read_bytes().replace(b'"format_version": 1', b'"format_version": 99'))


@pytest.mark.parametrize(
    "how",
    ["truncated weights", "flipped bit", "truncated manifest", "changed manifest", "no weights", "newer version"],
)
def test_a_damaged_model_is_refused(command: Command, folder: Path, quantized: str, how: str) -> None:
    before = {path.name: path.read_bytes() for path in (folder / quantized).iterdir()}
    damage(folder / quantized, how)
    assert {path.name: path.read_bytes() for path in (folder / quantized).iterdir()} != before, "nothing was damaged"
    for arguments in (("inspect", quantized), ("compare", "nets:cnn", quantized, "--data", "pictures.npy")):
        done = command(*arguments)
        sentences = [line for line in done.stderr.splitlines() if line.startswith("fewbit: ")]
        assert (done.code, len(sentences), done.stdout) == (2, 1, "")
        assert quantized in sentences[0]


def test_a_truncated_hugging_face_folder(
    command: Command, folder: Path, left_behind: Callable[[Path], list[str]]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=32)).save_pretrained(folder / "bert")
    weights = folder / "bert" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = command("quantize", "bert", "-r", "W8A16", "-o", "out")
    assert done.code == 2
    assert "bert" in done.stderr
    assert "out" not in left_behind(folder)
