"""A folder to work in, with factories of small models and data for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fewbit.cli import app

NETS = '''
"""Models for tests of the command line."""

import torch
from torch import nn


def cnn():
    torch.manual_seed(0)
    print("a factory that talks")
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def broken():
    model = cnn()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = float("nan")
    return model


class Odd(nn.Module):
    """Its architecture cannot be saved: the forward depends on its values."""

    def __init__(self):
        super().__init__()
        self.inner = cnn()

    def forward(self, x):
        return self.inner(x) if x.sum() > -1e9 else self.inner(-x)


def odd():
    return Odd()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: ``nets.py``, and ``pictures.npy`` with 24 samples."""
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    pictures = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "pictures.npy", pictures)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWBIT_TRACEBACK", raising=False)
    monkeypatch.delitem(__import__("sys").modules, "nets", raising=False)
    return tmp_path


class Outcome:
    """What a command printed and how it ended."""

    def __init__(self, code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr

    @property
    def document(self) -> dict[str, Any]:
        """stdout as the one JSON document it must be."""
        document: dict[str, Any] = json.loads(self.stdout, parse_constant=_refuse)
        return document


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.fixture
def command(folder: Path) -> Callable[..., Outcome]:
    """Runs ``fewbit ARGUMENTS`` in the folder."""

    def run(*arguments: str) -> Outcome:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def quantized(command: Callable[..., Outcome]) -> str:
    """A saved quantized model."""
    done = command("quantize", "nets:cnn", "--data", "pictures.npy", "--calibrator", "minmax", "-o", "saved")
    assert done.code == 0, done.stderr
    return "saved"


@pytest.fixture
def left_behind() -> Callable[[Path], list[str]]:
    """What lies in a folder, without what Python leaves there."""
    return lambda folder: sorted(path.name for path in folder.iterdir() if path.name != "__pycache__")
