"""ONNX Runtime on the network's Q/DQ form."""

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
    """Whether onnxruntime and what writes ONNX are there."""
    return all(importlib.util.find_spec(name) for name in ("onnxruntime", "onnx", "onnxscript"))


class Engine:
    """A session on the CPU; a second one that also gives the codes is made when they are asked for."""

    def __init__(self, network: Network, example: Sequence[Tensor], threads: int | None = None) -> None:
        self.ort = require("onnxruntime", "onnx")
        self.threads = threads or torch.get_num_threads()
        self.model, self.names = export(network, example)
        self.session = self._session(self.model)
        self.watched: Any = None

    def _session(self, model: Any) -> Any:
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        return self.ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The outputs, in order."""
        return [torch.from_numpy(value) for value in self.session.run(None, self._feed(inputs))]

    def codes(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The codes of every integer tensor."""
        if self.watched is None:
            self.watched = self._session(with_outputs(self.model, list(self.names.values())))
        found = self.watched.run(list(self.names.values()), self._feed(inputs))
        return {name: torch.from_numpy(value) for name, value in zip(self.names, found)}

    def _feed(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        names = [value.name for value in self.session.get_inputs()]
        return {name: x.detach().contiguous().numpy() for name, x in zip(names, inputs)}
