"""OpenVINO on the network's Q/DQ form."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import require
from fewbit.integer.ir import Network
from fewbit.integer.qdq import export, with_outputs


def installed() -> bool:
    """Whether openvino and what writes ONNX are there."""
    return all(importlib.util.find_spec(name) for name in ("openvino", "onnx", "onnxscript"))


class Engine:
    """A compiled model on the CPU; a second one that also gives the codes is made when they are asked for."""

    def __init__(self, network: Network, example: Sequence[Tensor], threads: int | None = None) -> None:
        self.core = require("openvino", "openvino").Core()
        self.config = {
            "INFERENCE_NUM_THREADS": threads or torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # of what stays float; else bfloat16 where the processor has it
        }
        self.model, self.names = export(network, example)
        self.compiled = self._compiled(self.model)
        self.watched: Any = None

    def _compiled(self, model: Any) -> Any:
        return self.core.compile_model(self.core.read_model(model.SerializeToString()), "CPU", self.config)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, in order."""
        found = self.compiled(self._feed(inputs))
        return [torch.from_numpy(found[port].copy()) for port in self.compiled.outputs]

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The codes of every integer tensor, rounded from what OpenVINO keeps of them."""
        wanted = list(self.names.values())
        if self.watched is None:
            self.watched = self._compiled(with_outputs(self.model, wanted))
        found = self.watched(self._feed(inputs))
        ports = {name: port for port in self.watched.outputs for name in port.get_names()}
        return {name: torch.from_numpy(found[ports[tensor]].copy()) for name, tensor in self.names.items()}

    def _feed(self, inputs: Sequence[Tensor]) -> list[Any]:
        return [x.detach().contiguous().numpy() for x in inputs]
