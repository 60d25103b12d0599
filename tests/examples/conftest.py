"""The examples are scripts that import their neighbours by name: what runs them in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))

Runs = Callable[..., tuple[int, str, str]]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Runs:
    """Run an example with arguments: exit code, and what it wrote to stdout and stderr."""

    def call(module: ModuleType, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        code = 0
        capsys.readouterr()
        try:
            module.command(module.main)
        except SystemExit as stopped:
            if isinstance(stopped.code, str):
                print(stopped.code, file=sys.stderr)
            code = stopped.code if isinstance(stopped.code, int) else 1
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Keep the state after every step, and die right after the given one, counted over all trainings of the run."""
    import _training

    save = _training._save

    def install(count: int) -> None:
        left = [count]

        def dying(*arguments: object) -> None:
            save(*arguments)
            left[0] -= 1
            if left[0] == 0:
                raise Killed

        monkeypatch.setattr(_training, "SAVE_EVERY", -1.0)
        monkeypatch.setattr(_training, "_save", dying)

    return install


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
