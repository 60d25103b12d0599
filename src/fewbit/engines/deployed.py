"""deploy(): a quantized model as a callable on one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewbit import atomic
from fewbit.errors import FewbitError
from fewbit.integer import Network, integer_network
from fewbit.integer.arguments import arguments
from fewbit.nn.preserved import preserved_state

#: The best first.
_PREFERRED = ("openvino", "onnxruntime", "torch")


class Deployed:
    """A network that runs in integers from its first quantized layer to its last.

    Attributes:
        engine: The name of the engine it runs on.
        network: The integer graph: nodes, quantizers, notes on what stayed in float.
    """

    def __init__(self, model: nn.Module, network: Network, engine: str, example: Any, threads: int | None) -> None:
        from fewbit import engines

        self.engine, self.network, self._model = engine, network, model
        self._example = _inputs(model, network, example)
        self._runner: Any = engines.get(engine).Engine(network, self._example, threads)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model would return for these arguments, in the same structure.

        Raises:
            FewbitError: The engine cannot take other shapes than the example's.
        """
        given = _leaves(self.network, args, kwargs)
        as_given = dict(zip(self.network.inputs, given))  # an input that is returned was not rounded
        outputs = [as_given.get(name, y) for name, y in zip(self.network.outputs, self._run(self._runner, given))]
        return torch.utils._pytree.tree_unflatten(outputs, self.network.output_tree)

    def codes(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The codes of every integer tensor, by its name in the network.

        Raises:
            FewbitError: As for a call.
        """
        found: dict[str, Tensor] = self._run(self._runner.codes, _leaves(self.network, args, kwargs))
        return found

    def _run(self, function: Callable[..., Any], given: list[Tensor]) -> Any:
        try:
            return function(*given)
        except Exception as error:
            found, wanted = _told(given), _told(self._example)
            if found == wanted:
                raise
            raise FewbitError(
                f"{self.engine} refused inputs of {found}; the network was made for {wanted}. Give deploy an example "
                "like these, or one of two samples or more, which leaves the batch size open"
            ) from error

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the network as ONNX with Q/DQ pairs, which any engine reads (``.onnx``), or as ``.tflite``.

        Args:
            path: The file to appear, whole or not at all; its ending says what it will be.
            overwrite: Whether a file at ``path`` is replaced.

        Raises:
            FewbitError: Another ending; there is a file at ``path``; an operation has no form in the format, or the
                file cannot be written.
        """
        from fewbit.integer import qdq, tflite

        ending = Path(path).suffix.lower()
        if ending not in (".onnx", ".tflite"):
            raise FewbitError(f"a network is saved as .onnx or .tflite, not as {Path(path).name}")
        if Path(path).exists() and not overwrite:
            raise FewbitError(f"{path} exists already: pass overwrite=True to replace it")
        if ending == ".tflite":
            data, _ = tflite.write(self.network, self._example)
        else:
            data = qdq.export(self.network, self._example)[0].SerializeToString()
        return atomic.write_bytes(path, data, overwrite=overwrite)

    def __repr__(self) -> str:
        integers = sum(node.integer for node in self.network.nodes)
        floats = sum(node.op == "float" for node in self.network.nodes)
        return f"Deployed({self.engine}: {integers} operations on integers, {floats} in float)"


def deploy(model: nn.Module, example: Any, engine: str | None = None, *, threads: int | None = None) -> Deployed:
    """Run a quantized model in integers from end to end.

    Batch norms are folded, activation functions absorbed, sums, concatenations, pooling, resizing and tables of
    functions computed on codes. Every engine gets the same codes, scales, int32 biases and tables.

    Args:
        model: From ``fewbit.quantize`` with static activations (``W8A8``, ``W4A8``), or such a model loaded.
        example: One batch as the model takes it (tensor, tuple or dict), or a list of batches. A model that does not
            remember the ranges of the tensors between its layers has them measured on these.
        engine: ``torch``, ``onnxruntime``, ``openvino``, ``litert``, ``reference`` (integer arithmetic alone); None:
            the fastest one that is installed.
        threads: How many threads the engine uses; None: torch's number.

    Raises:
        FewbitError: The model cannot be traced or has no static integer layers, or there is no such engine.
        MissingExtraError: The engine is not installed.
    """
    from fewbit import engines

    if not isinstance(model, nn.Module):
        raise FewbitError(f"deploy takes a quantized nn.Module, not {type(model).__name__}")
    if threads is not None and threads < 1:
        raise FewbitError(f"an engine needs at least 1 thread, not {threads}")
    chosen = engine or next(name for name in _PREFERRED if engines.get(name).installed())
    engines.get(chosen)
    batches = example if isinstance(example, list) else [example]
    if not batches:
        raise FewbitError("deploy needs an example batch")
    _check_example(model, batches[0])
    return Deployed(model, integer_network(model, batches), chosen, batches[0], threads)


def _check_example(model: nn.Module, batch: Any) -> None:
    """Run the model on it once: tracing would follow an input that it does not take.

    Raises:
        FewbitError: The model does not take the example.
    """
    args, kwargs = arguments(model, batch)
    try:
        with preserved_state(model), torch.no_grad():
            model(*args, **kwargs)
    except Exception as error:  # a model may raise anything
        shapes = _told([x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)])
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewbitError(f"the model does not take the example, {shapes}: {why}") from error


def _told(inputs: Sequence[Tensor]) -> str:
    return ", ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in inputs)


def _inputs(model: nn.Module, network: Network, batch: Any) -> list[Tensor]:
    args, kwargs = arguments(model, batch)
    return _leaves(network, args, kwargs)


def _leaves(network: Network, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors in arguments.

    Raises:
        FewbitError: There are more or fewer than the network has inputs, or arrays that are no tensors.
    """
    found = torch.utils._pytree.tree_leaves((tuple(args), dict(kwargs)))
    if any(isinstance(leaf, np.ndarray) for leaf in found):
        raise FewbitError("the network takes tensors, not NumPy arrays: hand it torch.from_numpy(array)")
    leaves = [leaf for leaf in found if isinstance(leaf, Tensor)]
    if len(leaves) != len(network.inputs):
        raise FewbitError(f"the network takes {len(network.inputs)} tensors, not {len(leaves)}")
    return leaves
