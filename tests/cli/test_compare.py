"""``fewbit compare``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewbit

Command = Callable[..., Any]  # arguments in, an Outcome out


def test_json_is_what_compare_says(command: Command, folder: Path, quantized: str) -> None:
    done = command("compare", "nets:cnn", quantized, "--data", "pictures.npy", "--batch-size", "8", "--json")
    assert done.code == 0, done.stderr
    import nets  # type: ignore[import-not-found]

    batches = list(torch.from_numpy(np.load("pictures.npy")).split(8))
    expected = fewbit.compare(nets.cnn(), fewbit.load(folder / quantized), batches, repeats=0).to_dict()
    document = done.document
    assert document["output_sqnr"] == expected["output_sqnr"]
    assert document["rows"] == [{**row} for row in expected["rows"]]
    assert (document["batches"], document["samples"]) == (3, 24)
    assert document["size"]["file_after"] == sum(path.stat().st_size for path in (folder / quantized).iterdir())
    assert document["time"]["before"]["repeats"] == 9
    assert document["quantized"] == quantized


def test_people_see_tables(command: Command, quantized: str) -> None:
    text = command("compare", "nets:cnn", quantized, "--data", "pictures.npy", "--repeats", "1").stdout
    for told in ("whole model", "smaller", "same top-1", "layers", "w/theory"):
        assert told in text


def test_no_timing_when_none_is_wanted(command: Command, quantized: str) -> None:
    arguments = ("compare", "nets:cnn", quantized, "--data", "pictures.npy", "--repeats", "0")
    assert command(*arguments, "--json").document["time"] is None
    assert "time a batch" not in command(*arguments).stdout


def test_the_page_is_written_and_not_overwritten_unasked(
    command: Command, folder: Path, quantized: str, left_behind: Callable[[Path], list[str]]
) -> None:
    pytest.importorskip("plotly")
    arguments = ("compare", "nets:cnn", quantized, "--data", "pictures.npy", "--repeats", "0", "--html", "page.html")
    done = command(*arguments, "--json")
    assert done.code == 0, done.stderr
    assert done.document["html"] == "page.html"
    assert "Plotly" in (folder / "page.html").read_text(encoding="utf-8")
    again = command(*arguments)
    assert again.code == 2
    assert "--overwrite" in again.stderr
    assert command(*arguments, "--overwrite").code == 0
    assert left_behind(folder) == ["nets.py", "page.html", "pictures.npy", "saved"]


def test_an_architecture_that_could_not_be_saved_comes_from_the_original(command: Command) -> None:
    assert command("quantize", "nets:odd", "-r", "W8A16", "-o", "odd").code == 0
    done = command("compare", "nets:odd", "odd", "--data", "pictures.npy", "--repeats", "0", "--json")
    assert done.code == 0, done.stderr
    assert done.document["output_sqnr"] > 30


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nets:cnn", "saved"), "--data"),
        (("nets:cnn", "saved", "--data", "nothing.npy"), "nothing.npy does not exist"),
        (("nets:cnn", "nothing", "--data", "pictures.npy"), "nothing does not exist"),
        (("nets:cnn", "nets:cnn", "--data", "pictures.npy"), "has no quantized layer"),
        (("nets:odd", "saved", "--data", "pictures.npy"), "not in the original"),
    ],
)
def test_what_cannot_be_compared(command: Command, quantized: str, arguments: tuple[str, ...], told: str) -> None:
    done = command("compare", *arguments)
    assert done.code == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_the_page_replaces_neither_a_model_nor_the_data(command: Command, folder: Path, quantized: str) -> None:
    pytest.importorskip("plotly")
    arguments = ("compare", "nets:cnn", quantized, "--data", "pictures.npy", "--repeats", "0", "--overwrite", "--html")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    before = {path: path.read_bytes() for path in files}
    inside = next(path for path in sorted((folder / quantized).iterdir()) if path.suffix == ".safetensors")
    for page, told in [
        ("pictures.npy", "is the source itself"),
        (quantized, "is the source itself"),
        (str(inside), "is no page"),
        (f"none/../{quantized}/{inside.name}", "is no page"),
        ("nets.py", "is no page"),
    ]:
        done = command(*arguments, page)
        assert done.code == 2
        assert told in done.stderr, page
    assert {path: path.read_bytes() for path in files} == before
    page = f"{quantized}/page.html"  # a new name is no file of the model, and an older page may be replaced
    assert [command(*arguments, page).code for _ in range(2)] == [0, 0]
