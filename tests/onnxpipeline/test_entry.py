"""What Python users call, with and without the extra."""

from __future__ import annotations

import subprocess
import sys


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
