"""``fewbit quantize``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewbit
from fewbit.evaluate.size import model_bytes
from fewbit.nn import info, quantized_layers

Command = Callable[..., Any]  # arguments in, an Outcome out


def test_json_tells_exactly_what_was_done(command: Command, folder: Path) -> None:
    done = command("quantize", "nets:cnn", "-r", "W8A8", "--data", "pictures.npy", "-o", "out", "--json")
    assert done.code == 0, done.stderr
    document, model = done.document, fewbit.load(folder / "out")
    assert [layer["name"] for layer in document["layers"]] == list(quantized_layers(model)) == ["0", "4"]
    first = document["layers"][0]
    assert (first["weights"], first["input"]) == ("int8/channel/sym", "uint8/tensor/asym")
    assert first["bytes_before"] == 216 * 4
    assert first["bytes_after"] == 216 + 8 * 4 + 8 * 4 + 8
    assert document["bytes_after"] == model_bytes(model)
    assert document["bytes_before"] == (216 + 32 + 2880 + 10) * 4 + 8
    assert document["file_after"] == sum(path.stat().st_size for path in (folder / "out").iterdir())
    assert document["file_before"] is None
    assert document["folded"] == [["0", "1"]]
    assert document["skipped"] == {}
    assert document["recipe"]["scheme"] == "W8A8"
    assert "a factory that talks" in done.stderr
    assert "the biases of 2 layers were corrected" in done.stdout


def test_people_see_a_table_and_a_summary(
    command: Command, folder: Path, left_behind: Callable[[Path], list[str]]
) -> None:
    done = command("quantize", "nets:cnn", "-r", "W4A16-g32", "-o", "out")
    assert done.code == 0, done.stderr
    assert "2 layers quantized, 0 left in float" in done.stdout
    assert "int4/g32/sym" in done.stdout
    assert "smaller" in done.stdout
    assert f"out holds {sum(path.stat().st_size for path in (folder / 'out').iterdir()):,} bytes" in done.stdout
    assert left_behind(folder) == ["nets.py", "out", "pictures.npy"]


def test_the_saved_model_computes_what_quantize_computes(command: Command, folder: Path) -> None:
    assert command("quantize", "nets:cnn", "--data", "pictures.npy", "--batch-size", "8", "-o", "out").code == 0
    import nets  # type: ignore[import-not-found]

    data = torch.from_numpy(np.load("pictures.npy"))
    expected = fewbit.quantize(nets.cnn(), "W8A8", list(data.split(8)))
    with torch.no_grad():
        assert torch.equal(fewbit.load(folder / "out")(data), expected(data))


def test_options_reach_the_work(command: Command, folder: Path) -> None:
    arguments = ("quantize", "nets:cnn", "--data", "pictures.npy", "--json", "--overwrite", "-o", "out")
    plain = command(*arguments, "--calibrator", "minmax")
    uncorrected = command(*arguments, "--calibrator", "minmax", "--no-bias-correction")
    percentile = command(*arguments, "--calibrator", "percentile")
    assert "corrected" in str(plain.document["notes"])
    assert "corrected" not in str(uncorrected.document["notes"])
    assert command(*arguments, "--bias-correction", "exact").code != 0
    analytic = command(*arguments, "--algorithm", "absorb+rtn", "--bias-correction", "analytic")
    assert "biases were handed on between 0 pairs" in str(analytic.document["notes"])  # the layers share no channels
    unequal = command(*arguments, "--algorithm", "equalize+rtn")
    assert "equalize found no two layers" in unequal.document["error"]
    assert percentile.document["recipe"]["calibrator"] == "percentile"


def test_fewer_samples_see_less(command: Command, folder: Path) -> None:
    scales = []
    for samples in ("1", "24"):
        chosen = ("--calibrator", "minmax", "--samples", samples, "-o", "out", "--overwrite")
        command("quantize", "nets:cnn", "--data", "pictures.npy", *chosen)
        layer = quantized_layers(fewbit.load(folder / "out"))["0"]
        scales.append(float(layer.weight.input_quantizer.scale))  # type: ignore[union-attr,arg-type]
    assert scales[0] != scales[1]


def test_a_recipe_file_skips_and_says_why(command: Command, folder: Path) -> None:
    (folder / "r.toml").write_text('scheme = "W8A16"\n[[rule]]\nmatch = "@last"\nskip = true\n')
    done = command("quantize", "nets:cnn", "--recipe", "r.toml", "-o", "out", "--json")
    assert done.document["skipped"] == {"4": "skipped by rule '@last'"}
    told = info(fewbit.load(folder / "out"))
    assert told is not None
    assert told.skipped == done.document["skipped"]
    text = command("quantize", "nets:cnn", "--recipe", "r.toml", "-o", "out", "--overwrite").stdout
    assert "skipped by rule '@last'" in text
    assert "1 layer quantized, 1 left in float" in text


def test_what_cannot_be_saved_whole_is_a_note(command: Command) -> None:
    done = command("quantize", "nets:odd", "-r", "W8A16", "-o", "out", "--json")
    assert done.code == 0, done.stderr
    assert any("architecture" in note for note in done.document["notes"])


def test_an_output_that_exists_is_kept(command: Command, folder: Path, quantized: str) -> None:
    before = {path.name: path.read_bytes() for path in (folder / quantized).iterdir()}
    done = command("quantize", "nets:cnn", "-r", "W8A16", "-o", quantized)
    assert done.code == 2
    assert "--overwrite" in done.stderr
    assert {path.name: path.read_bytes() for path in (folder / quantized).iterdir()} == before
    assert command("quantize", "nets:cnn", "-r", "W8A16", "-o", quantized, "--overwrite").code == 0
    assert {path.name: path.read_bytes() for path in (folder / quantized).iterdir()} != before


def test_the_same_command_writes_the_same_bytes(command: Command, folder: Path) -> None:
    for name in ("a", "b"):
        arguments = ("--data", "pictures.npy", "--calibrator", "minmax", "-o", name)
        assert command("quantize", "nets:cnn", *arguments).code == 0
    for path in (folder / "a").iterdir():
        assert path.read_bytes() == (folder / "b" / path.name).read_bytes()


def test_a_text_model_from_a_folder(command: Command, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(**sizes, intermediate_size=32)).save_pretrained(folder / "bert")
    done = command("quantize", "bert", "-r", "W8A8-dynamic", "-o", "out", "--json")
    assert done.code == 0, done.stderr
    assert done.document["file_before"] == sum(path.stat().st_size for path in (folder / "bert").iterdir())
    assert {layer["input"] for layer in done.document["layers"]} == {"float", "int8/token/sym dynamic"}
    assert isinstance(fewbit.load(folder / "out"), transformers.BertModel)
