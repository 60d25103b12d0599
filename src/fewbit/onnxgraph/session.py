"""Run a graph with ONNX Runtime: sessions, feeds from batches of any kind, one sample to know the sizes."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fewbit.errors import FewbitError, require
from fewbit.onnxgraph import file

Feeds = dict[str, np.ndarray]

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class Runner:
    """A loaded graph.

    Args:
        model: ``onnx_ir.Model``, the bytes of one, or the path of a file.
        threads: Of one product; 0 for all cores.
        optimize: Let the runtime rewrite the graph, as users do.
        as_written: Compute quantize and dequantize nodes one by one. (Else the runtime also rounds float weights behind
            coded activations, to one scale a tensor.)
        profile: Write a profile; :meth:`profile_file` ends it.
        arena: Keep memory from run to run, which saves touching fresh pages; for runs of about the same size.

    Raises:
        FewbitError: The runtime refuses the graph; the message is its own.
    """

    def __init__(
        self,
        model: Any,
        *,
        threads: int = 0,
        optimize: bool = True,
        as_written: bool = False,
        profile: str | None = None,
        arena: bool = False,
    ) -> None:
        ort = require("onnxruntime", "onnx")
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = arena
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        if as_written:
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, profile
        try:
            with _as_argument(model) as argument:
                self.session = ort.InferenceSession(argument, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a class an error code
            raise FewbitError(f"ONNX Runtime refuses the graph: {_told(error)}{_where(error, model)}") from error
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        outputs = self.session.get_outputs()
        self.outputs = [value.name for value in outputs]
        self.unreadable = {
            value.name: value.type for value in outputs if re.search("bfloat16|float8|float4", value.type)
        }

    def feeds(self, batch: Any) -> Feeds:
        """Arrays by the graph's input names, in its types.

        Args:
            batch: A tensor or array for the first input, a sequence of them, or a mapping by name. What the graph
                does not take (labels) is left out.

        Raises:
            FewbitError: An input is missing, or the batch is of another kind.
        """
        given = _named(batch, list(self.inputs))
        missing = [name for name in self.inputs if name not in given]
        if missing:
            raise FewbitError(
                f"the batch has no value for the input {missing[0]!r}; the model takes {', '.join(self.inputs)}"
            )
        return {name: self._typed(name, given[name]) for name in self.inputs}

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        """Outputs by name.

        Raises:
            FewbitError: The run failed; the message is the runtime's first line. Or numpy has no type for an output.
        """
        wanted = list(self.outputs if outputs is None else outputs)
        if (odd := next((name for name in wanted if name in self.unreadable), None)) is not None:
            raise FewbitError(
                f"the output {odd!r} is {self.unreadable[odd]}, which ONNX Runtime does not hand to Python; end the "
                "model in a Cast to float"
            )
        try:
            return dict(zip(wanted, self.session.run(wanted, feeds)))
        except Exception as error:  # onnxruntime raises a class an error code
            raise FewbitError(f"the model failed on the data: {_told(error)}") from error

    def run_into(self, feeds: Feeds, outputs: Mapping[str, np.ndarray]) -> None:
        """Run, and leave the outputs in arrays at hand, which have their types and sizes: no fresh memory is touched.

        Raises:
            FewbitError: The run failed, or an output has another size.
        """
        try:
            binding = self.session.io_binding()
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name, array in outputs.items():
                binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            self.session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime raises a class an error code
            raise FewbitError(f"the model failed on the data: {_told(error)}") from error

    def _typed(self, name: str, value: Any) -> np.ndarray:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        wanted = _TYPES.get(self.inputs[name].type)
        if wanted is None:
            raise FewbitError(f"the input {name!r} is of type {self.inputs[name].type}, which no data file gives")
        if array.dtype.kind == "f" and np.dtype(wanted).kind in "iub":
            raise FewbitError(f"the input {name!r} takes {np.dtype(wanted)} and the data holds {array.dtype}")
        return np.ascontiguousarray(array, dtype=wanted)


def _named(batch: Any, names: list[str]) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    if isinstance(batch, Tensor | np.ndarray):
        return {names[0]: batch}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        return dict(zip(names, batch))
    raise FewbitError(f"a batch is an array, a sequence or a dict of arrays, not {type(batch).__name__}")


@contextlib.contextmanager
def _as_argument(model: Any) -> Iterator[str | bytes]:
    """What onnxruntime opens: bytes where they fit one message, else a file that is gone afterwards."""
    if isinstance(model, str | Path):
        yield str(model)
    elif isinstance(model, bytes):
        yield model
    elif file.initializer_bytes(model) < file.INLINE_LIMIT:
        yield file.serialize(model)
    else:
        with tempfile.TemporaryDirectory(prefix="fewbit-") as folder:
            yield str(file.write(model, Path(folder) / "model.onnx"))


def _told(error: BaseException) -> str:
    """The runtime's message without its code, in one line."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.split(" : ")[-1] if line.startswith("[ONNXRuntimeError]") else line


def _where(error: BaseException, model: Any) -> str:
    """Which node has the operator that the runtime does not know; its message names the operator alone."""
    found = re.search(r"(\S*):(\w+)\(-?\d+\) is not a registered function/op", str(error))
    if found is None or isinstance(model, str | Path | bytes):
        return ""
    names = [node.name for node in model.graph.all_nodes() if (node.domain, node.op_type) == found.groups()]
    return f": node {names[0]!r}" if names else ""
