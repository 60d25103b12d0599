"""Bytes of a checkpoint, whatever type it was loaded in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_folder
from torch import nn
from typer.testing import CliRunner

from fewbit.cli import app
from fewbit.cli.stored import as_it_was
from fewbit.sources import LoadedModel


def test_inspect_counts_what_the_checkpoint_holds(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "llama")
    kept = {name: t.to(torch.bfloat16) for name, t in load_file(folder / "model.safetensors").items()}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    foretold = CliRunner().invoke(app, ["inspect", str(folder), "--recipe", "W4A16-g16", "--json"])
    assert foretold.exit_code == 0, foretold.output
    told = json.loads(foretold.stdout)
    assert told["total"]["bytes"] == sum(tensor.nbytes for tensor in kept.values())
    assert {layer["weights"] for layer in told["layers"]} == {"bfloat16"}
    arguments = [
        "quantize",
        str(folder),
        "-r",
        "W4A16-g16",
        "--algorithm",
        "rtn",
        "-o",
        str(tmp_path / "out"),
        "--json",
    ]
    made = json.loads(CliRunner().invoke(app, arguments).stdout)
    after = {layer["name"]: layer["bytes_after"] for layer in made["layers"]}
    planned = {layer["name"]: layer["recipe"]["bytes"] for layer in told["layers"] if layer["name"] in after}
    assert planned == after


def test_other_models_are_as_loaded() -> None:
    model = nn.Linear(2, 2)
    assert as_it_was(LoadedModel(model, "nets:linear", "python"), "nets:linear") is model


def test_a_folder_that_cannot_be_read_again_is_as_loaded(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    assert as_it_was(LoadedModel(model, "gone", "huggingface"), str(tmp_path / "gone")) is model
