"""LiteRT (TensorFlow Lite) on the network's .tflite form, with its reference kernels or its fast ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import FewbitError, require
from fewbit.integer.ir import Network
from fewbit.integer.tflite import write


def installed() -> bool:
    """Whether ai-edge-litert and flatbuffers are there."""
    return all(importlib.util.find_spec(name) for name in ("ai_edge_litert", "flatbuffers"))


class Engine:
    """An interpreter for the example's batch size.

    Args:
        network: The network.
        example: Its inputs.
        threads: Of the fast kernels.
        kernels: ``fast``: what LiteRT takes by itself; ``reference``: its plain kernels, gemmlowp's arithmetic.
    """

    def __init__(
        self, network: Network, example: Sequence[Tensor], threads: int | None = None, kernels: str = "fast"
    ) -> None:
        module = require("ai_edge_litert.interpreter", "litert")
        self.network = network
        data, self.tensors = write(network, example)
        kinds = module.OpResolverType
        self.interpreter: Any = module.Interpreter(
            model_content=data,
            num_threads=threads or torch.get_num_threads(),
            experimental_op_resolver_type=kinds.BUILTIN_REF if kernels == "reference" else kinds.AUTO,
            experimental_preserve_all_tensors=True,
        )
        self.interpreter.allocate_tensors()
        self.shapes = [tuple(x.shape) for x in example]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs in float32, in order."""
        self._run(inputs)
        outputs = []
        for name in self.network.outputs:
            value, affine = self._value(name), self.network.affine.get(name)
            outputs.append(value if affine is None else affine.dequantize(value))
        return outputs

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The codes of every integer tensor."""
        self._run(inputs)
        return {name: self._value(name) for name in self.network.affine if name in self.tensors}

    def _run(self, inputs: Sequence[Tensor]) -> None:
        if [tuple(x.shape) for x in inputs] != self.shapes:
            raise FewbitError(
                f"the file was written for inputs of the shapes {self.shapes}; deploy with such an example"
            )
        for name, x in zip(self.network.inputs, inputs):
            affine = self.network.affine[name]
            codes = (affine.quantize(x).to(torch.int16) - affine.qmin - 128).to(torch.int8)
            self.interpreter.set_tensor(self.tensors[name], codes.permute(0, 2, 3, 1).contiguous().numpy())
        self.interpreter.invoke()

    def _value(self, name: str) -> Tensor:
        value, affine = (
            torch.from_numpy(self.interpreter.get_tensor(self.tensors[name]).copy()),
            self.network.affine.get(name),
        )
        value = value.permute(0, 3, 1, 2) if value.dim() == 4 else value
        return value if affine is None else (value.to(torch.int16) + 128 + affine.qmin).to(affine.dtype)
