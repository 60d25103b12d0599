"""deploy(): a quantized model as a callable on one engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.integer import Network, integer_network
from fewbit.integer.arguments import arguments

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
            shapes, made_for = ([tuple(x.shape) for x in each] for each in (given, self._example))
            if shapes == made_for:
                raise
            raise FewbitError(
                f"{self.engine} refused inputs of shape {_told(shapes)}; the network was made for {_told(made_for)}. "
                "Give deploy an example of that shape, or one of two samples or more, which leaves the batch size open"
            ) from error

    def save(self, path: str | Path) -> Path:
        """Write the network as ONNX with Q/DQ pairs, which any engine reads, or as ``.tflite`` by the path's ending.

        Raises:
            FewbitError: An operation has no form in the format, or the file cannot be written.
        """
        from fewbit.integer import qdq, tflite

        if Path(path).suffix == ".tflite":
            tflite.write(self.network, self._example, path)
        else:
            qdq.export(self.network, self._example, path)
        return Path(path)

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
    return Deployed(model, integer_network(model, batches), chosen, batches[0], threads)


def _told(shapes: list[tuple[int, ...]]) -> str:
    return ", ".join(map(str, shapes))


def _inputs(model: nn.Module, network: Network, batch: Any) -> list[Tensor]:
    args, kwargs = arguments(model, batch)
    return _leaves(network, args, kwargs)


def _leaves(network: Network, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors in arguments.

    Raises:
        FewbitError: There are more or fewer than the network has inputs.
    """
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(leaf, Tensor)]
    if len(leaves) != len(network.inputs):
        raise FewbitError(f"the network takes {len(network.inputs)} tensors, not {len(leaves)}")
    return leaves
