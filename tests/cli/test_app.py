"""The program itself, as its own process and inside this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fewbit
from fewbit.cli.app import main

Command = Callable[..., Any]  # arguments in, an Outcome out


def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fewbit", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def run(*arguments: str) -> tuple[int, str, str]:
    process = start(*arguments)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


def test_the_whole_way_as_a_program(folder: Path) -> None:
    code, stdout, stderr = run("quantize", "nets:cnn", "-r", "W8A8", "--data", "pictures.npy", "-o", "out", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["output"] == "out"
    assert stderr == "a factory that talks\n", "no progress where nobody watches, no warnings"
    code, stdout, stderr = run("compare", "nets:cnn", "out", "--data", "pictures.npy", "--repeats", "1", "--json")
    assert code == 0, stderr
    assert json.loads(stdout)["top1"] > 0.5


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"fewbit {fewbit.__version__}\n"


def test_help_needs_neither_torch_nor_anything_heavy() -> None:
    code = (
        "import sys; from fewbit.cli import main\n"
        "try: main(['quantize', '--help'])\n"
        "except SystemExit: print([n for n in ('torch', 'numpy', 'transformers', 'plotly') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--recipe" in done.stdout


@pytest.mark.parametrize("command", ["quantize", "inspect", "compare", "demo"])
def test_every_command_has_help_and_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["frobnicate"], "frobnicate"),
        (["inspect"], "SOURCE"),
        (["inspect", "x:y", "--nonsense"], "--nonsense"),
        (["quantize", "x:y"], "--output"),
        (["quantize", "x:y", "-o", "out", "--batch-size", "0"], "--batch-size"),
        (["quantize", "x:y", "-o", "out", "--samples", "many"], "--samples"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--json"] if as_json else arguments)
        captured = capsys.readouterr()
        assert left.value.code == 2
        assert told in captured.err
        assert captured.err.count("\n") == 1
        assert "--help" in captured.err
        assert (json.loads(captured.out)["error"] in captured.err) if as_json else not captured.out


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    captured = capsys.readouterr()
    assert "quantize" in captured.out + captured.err
    assert "fewbit: " not in captured.err


SLOW = """
import time
import nets
from torch import nn


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nets.cnn()

    def forward(self, x):
        print("working", flush=True)
        time.sleep(0.3)
        return self.inner(x)
"""


@pytest.mark.skipif(os.name == "nt", reason="sends a POSIX signal")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(
    folder: Path, left_behind: Callable[[Path], list[str]], number: signal.Signals, code: int
) -> None:
    (folder / "slow.py").write_text(SLOW)
    before = left_behind(folder)
    process = start("quantize", "slow:Slow", "--data", "pictures.npy", "--batch-size", "1", "-o", "out", "--json")
    assert process.stderr is not None
    lines = []
    while "working\n" not in lines:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert json.loads(stdout) == {"error": "interrupted"}
    assert stderr.splitlines()[-1] == "fewbit: interrupted"
    assert "Traceback" not in stderr
    assert left_behind(folder) == before


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    (folder / "big.py").write_text(
        "from torch import nn\nnet = nn.Sequential(*[nn.Linear(1, 1) for _ in range(800)])\n"
    )
    process = start("inspect", "big:net")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    stderr = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    assert "Traceback" not in stderr
    assert "Exception" not in stderr


def test_help_is_quick() -> None:
    fastest = 60.0
    for _ in range(5):
        begin = time.perf_counter()
        run("--help")
        fastest = min(fastest, time.perf_counter() - begin)
    assert fastest < 2, "0.3 s on an idle machine"
