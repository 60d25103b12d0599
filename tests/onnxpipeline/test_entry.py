"""What Python users call, with and without the extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_the_rest_of_fewbit_does_without_the_extra() -> None:
    """A model of torch is quantized where neither ONNX nor transformers is installed."""
    program = (
        "import sys\n"
        "for name in ('onnx_ir', 'onnxruntime', 'transformers', 'plotly'): sys.modules[name] = None\n"
        "import torch, fewbit, fewbit.cli.app, fewbit.train\n"
        "fewbit.quantize(torch.nn.Sequential(torch.nn.Linear(8, 8)), 'W8A8', [torch.randn(4, 8)])\n"
        "try: fewbit.quantize('x.onnx', 'W8A8', [1], output='y.onnx')\n"
        "except fewbit.errors.MissingExtraError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "fewbit[onnx]" in found.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "a.onnx", "--data", "x.npy", "-o", "b.onnx"),
        ("quantize", "a.onnx", "-r", "W4A16-g32", "-o", "b.onnx"),
        ("compare", "a.onnx", "c.onnx", "--data", "x.npy"),
    ],
)
def test_every_command_names_the_extra_that_it_lacks(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for name in ("a.onnx", "c.onnx", "x.npy"):
        (tmp_path / name).write_bytes(b"not looked at")
    program = (
        "import sys\n"
        "for name in ('onnx', 'onnx_ir', 'onnxscript', 'onnxruntime'): sys.modules[name] = None\n"
        f"sys.argv = {['fewbit', *arguments]!r}\n"
        "from fewbit.cli.app import main\n"
        "main()\n"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert "pip install 'fewbit[onnx]'" in found.stderr
    assert len(found.stderr.splitlines()) == 1
