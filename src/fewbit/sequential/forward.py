"""Forward passes over calibration windows: several windows at a time, each on one thread.

Products of several threads may be added up in another order, so each window runs on one thread and the windows in
parallel: results do not depend on how many threads there are. On machines with fast bfloat16 products the passes run
under autocast (the residual stream stays float32): what that rounds is far below what quantizing does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.kernels.side_by_side import pool
from fewbit.nn.layers import QuantLinear
from fewbit.nn.swap import quantized_layers
from fewbit.sequential.attention import faster_attention

T = TypeVar("T")

_NAMES = ("float32", "bfloat16")


def forward_type(wanted: str | None) -> str:
    """How forward passes compute: as asked for, else in bfloat16 where the processor multiplies in it.

    Raises:
        FewbitError: An unknown name.
    """
    if wanted is not None and wanted not in _NAMES:
        raise FewbitError(f"calibration runs in {' or '.join(_NAMES)}, not {wanted!r}")
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    fast = torch.cuda.is_available() or bool(has())
    return wanted or ("bfloat16" if fast else "float32")


def over_windows(
    windows: Iterable[int], run: Callable[[int], T], compute: str, threads: int | None = None
) -> Iterator[tuple[int, T]]:
    """Run something on every window.

    Args:
        windows: Their numbers.
        run: Called with a window, on another thread, without gradients.
        compute: From :func:`forward_type`.
        threads: Windows at a time; None for as many as torch has threads.

    Yields:
        Windows in order, each with what ``run`` returned; a few more may be under way.
    """
    threads = torch.get_num_threads() if threads is None else threads

    def work(window: int) -> T:
        with torch.no_grad(), computing(compute):
            return run(window)

    left, under_way = iter(windows), deque[tuple[int, Future[T]]]()
    with pool(threads) as workers:
        for window in left:
            under_way.append((window, workers.submit(work, window)))
            if len(under_way) > threads:
                done, future = under_way.popleft()
                yield done, future.result()
        while under_way:
            done, future = under_way.popleft()
            yield done, future.result()


@contextmanager
def computing(compute: str) -> Iterator[None]:
    """A context in which products are of this type."""
    if compute != "bfloat16":
        yield
        return
    on_gpu = torch.autocast("cuda", torch.bfloat16, torch.cuda.is_available())
    with torch.autocast("cpu", torch.bfloat16), on_gpu, faster_attention():
        yield


class Seen(threading.local):
    """What hooks saw in this thread's forward pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def take(self) -> list[tuple[str, Any]]:
        """What was seen since the last time."""
        calls, self.calls = self.calls, []
        return calls


@contextmanager
def narrow(layers: Iterable[nn.Module], compute: str) -> Iterator[None]:
    """A context in which linear layers hold their weights in the type of the passes: autocast would else round them to
    it for every window."""
    held: list[tuple[nn.Module, nn.Parameter]] = []
    try:
        for layer in layers if compute == "bfloat16" else ():
            weight = layer._parameters.get("weight")
            if type(layer) is nn.Linear and isinstance(weight, nn.Parameter) and weight.dtype == torch.float32:
                held.append((layer, weight))
                values = _columns_first(weight.detach().to(torch.bfloat16))
                layer._parameters["weight"] = nn.Parameter(values, requires_grad=False)
        yield
    finally:
        for layer, weight in held:
            layer._parameters["weight"] = weight


def stand_ins(model: nn.Module, compute: str, block: str) -> dict[str, nn.Module]:
    """Layers with dequantized weights for the places of a block's quantized linear layers without activation codes: the
    same products, without unpacking a weight for every window."""
    layers = quantized_layers(model.get_submodule(block))
    made = {f"{block}.{path}": (layer, stand_in(layer, compute)) for path, layer in layers.items()}
    return {name: other for name, (layer, other) in made.items() if other is not layer}


def stand_in(layer: nn.Module, compute: str) -> nn.Module:
    """One such layer; the layer itself where it is of another kind."""
    if not isinstance(layer, QuantLinear) or layer.input_quantizer is not None:
        return layer
    dtype = torch.bfloat16 if compute == "bfloat16" else torch.float32
    return _Dequantized(_columns_first(layer.weight_qtensor().dequantize().to(dtype)), layer.bias)


def _columns_first(weight: Tensor) -> Tensor:
    """The same matrix, its columns one after another in memory: products with it take up to half the time."""
    return weight.t().contiguous().t()


class _Dequantized(nn.Module):
    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)  # autocast brings all three to one type
