from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

from fewbit.kernels.constant import constant_in_graphs


class _Opaque:
    """Something that no tracer follows."""

    def __init__(self, text: str) -> None:
        self.number = int(subprocess.run([sys.executable, "-c", f"print({text})"], capture_output=True).stdout)


@constant_in_graphs
def _number(text: str) -> int:
    return _Opaque(text).number


def test_compiled_code_holds_the_result() -> None:
    def scaled(x: Tensor) -> Tensor:
        return x * _number("3 + 4")

    compiled = torch.compile(scaled, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 7.0))


def test_it_is_the_mark_that_torch_sets() -> None:
    def own() -> int:
        return 1

    torch_s = torch.compiler.assume_constant_result(lambda: 1)  # type: ignore[untyped-decorator]
    assert vars(constant_in_graphs(own)) == vars(torch_s)


def test_the_layers_are_imported_without_the_compiler() -> None:
    script = "import sys, fewbit.nn.layers; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"
