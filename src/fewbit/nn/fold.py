"""Folding batch norm into the layer before it: ``W' = W·γ/σ``, ``b' = (b − μ)·γ/σ + β`` (arXiv 1712.05877, section
3.2).

A batch norm is folded when it alone consumes the layer's output. That is read from a symbolic trace; where the model
cannot be traced symbolically, from one run on an example.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewbit.errors import FewbitError
from fewbit.nn import kinds
from fewbit.nn.preserved import preserved_state
from fewbit.nn.swap import replace_module

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FOLDABLE = {"Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d"}
_TOLERANCE = 1e-3  # of the largest output; float32 rounding through a hundred layers stays below 1e-5


@dataclass
class FoldResult:
    """The folded model, the (layer, norm) pairs that became one, and sentences on what was not folded.

    Attributes:
        model: As it is now.
        pairs: Layer and norm.
        notes: For the user.
        moments: Mean and standard deviation of each channel behind the norms that were folded, β and |γ|, by layer.
    """

    model: nn.Module
    pairs: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def fold_batch_norm(model: nn.Module, run: Callable[[nn.Module], Any] | None = None) -> FoldResult:
    """Fold every batch norm that can be folded.

    Args:
        model: Changed in place; must be in evaluation mode.
        run: Runs a model on an example and gives its first output tensor; used to find pairs where symbolic tracing
            fails, and to check the
            whole model.

    Raises:
        FewbitError: The outputs on the example changed by more than float error.
    """
    result = FoldResult(model)
    norms = [name for name, module in model.named_modules() if isinstance(module, _NORMS)]
    if not norms:
        return result
    pairs = _traced_pairs(model)
    if pairs is None and run is not None:
        pairs = _observed_pairs(model, run)
    if pairs is None:
        result.notes.append("batch norm was not folded: the model cannot be traced symbolically and no data was given")
        return result
    before = _output(model, run)
    flat = _flat_linears(model, run)
    for layer_name, norm_name in pairs:
        layer = model.get_submodule(layer_name)
        if isinstance(layer, nn.Linear) and layer_name not in flat:
            continue  # the norm's channels may be another axis than the layer's outputs
        norm = model.get_submodule(norm_name)
        if _fold_pair(model, layer_name, norm_name):
            result.pairs.append((layer_name, norm_name))
            result.moments[layer_name] = _moments(norm)
    left = [name for name in norms if name not in {norm for _, norm in result.pairs}]
    if left:
        result.notes.append(f"batch norm left in float (not behind a layer that feeds it alone): {', '.join(left)}")
    after = _output(model, run)
    finite = before is not None and bool(torch.isfinite(before).all())
    if before is not None and after is not None and finite and not _equal(after, before):
        change = float((after - before).abs().max())
        raise FewbitError(f"folding batch norm changed the outputs by {change:.1e}, more than float error")
    return result


def _moments(norm: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel behind a norm, on the data that it was trained on."""
    ones = torch.ones(norm.num_features)
    mean = 0 * ones if norm.bias is None else norm.bias.detach().float().clone()
    return mean, ones if norm.weight is None else norm.weight.detach().float().abs()


def _output(model: nn.Module, run: Callable[[nn.Module], Any] | None) -> Tensor | None:
    if run is None:
        return None
    with torch.no_grad(), preserved_state(model):
        output = run(model)
    return output.to(torch.float64) if isinstance(output, Tensor) else None


def _flat_linears(model: nn.Module, run: Callable[[nn.Module], Any] | None) -> set[str]:
    """Linear layers whose output on the example is ``[N, features]``."""
    flat: set[str] = set()
    if run is None:
        return flat
    hooks = [
        module.register_forward_hook(lambda _m, _a, output, name=name: flat.add(name) if output.dim() == 2 else None)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        _output(model, run)
    finally:
        for hook in hooks:
            hook.remove()
    return flat


class _Tracer(fx.Tracer):
    """Stops at the layers that can be folded, whatever class they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return kinds.kind(m) is not None or isinstance(m, _NORMS) or super().is_leaf_module(m, module_qualified_name)


def _traced_pairs(model: nn.Module) -> list[tuple[str, str]] | None:
    try:
        with preserved_state(model):
            graph = _Tracer().trace(model)
    except Exception:  # noqa: BLE001  the model's own Python ran on symbols: anything can come out of it
        return None
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], _NORMS):
            continue
        before = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        layer = modules[str(before.target)]
        if kinds.kind(layer) in _FOLDABLE and calls[id(layer)] == 1 and calls[id(modules[str(node.target)])] == 1:
            pairs.append((str(before.target), str(node.target)))
    return pairs


class _Consumers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which norm (or None) every operator that reads a layer's output belongs to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.producer: dict[int, str] = {}
        self.readers: dict[str, set[str | None]] = defaultdict(set)
        self.active: str | None = None
        self.calls: Counter[str] = Counter()
        self.alive: list[Tensor] = []  # an id names one tensor as long as the tensor lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self.producer:
                self.readers[self.producer[id(value)]].add(self.active)
        return func(*args, **(kwargs or {}))


def _observed_pairs(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[tuple[str, str]]:
    mode, hooks = _Consumers(), []

    def produced(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            mode.calls[name] += 1
            if isinstance(output, Tensor):
                mode.alive.append(output)
                mode.producer[id(output)] = name

        return hook

    def entered(name: str | None) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            mode.active = name
            if name is not None:
                mode.calls[name] += 1

        return hook

    for name, module in model.named_modules():
        if kinds.kind(module) in _FOLDABLE:
            hooks.append(module.register_forward_hook(produced(name)))
        elif isinstance(module, _NORMS):
            hooks += [module.register_forward_pre_hook(entered(name)), module.register_forward_hook(entered(None))]

    def returned(_module: nn.Module, _args: Any, output: Any) -> None:
        for value in torch.utils._pytree.tree_leaves(dict(output) if hasattr(output, "keys") else output):
            if id(value) in mode.producer:
                mode.readers[mode.producer[id(value)]].add(None)

    hooks.append(model.register_forward_hook(returned))
    try:
        with torch.no_grad(), mode:
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = []
    for layer, readers in mode.readers.items():
        (norm,) = readers if len(readers) == 1 else (None,)
        if norm is not None and mode.calls[layer] == 1 and mode.calls[norm] == 1:
            pairs.append((layer, norm))
    return pairs


def _fold_pair(model: nn.Module, layer_name: str, norm_name: str) -> bool:
    layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    assert isinstance(norm, _NORMS)
    weight, old_bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    channels = norm.num_features
    if norm.running_mean is None or norm.running_var is None or _shared(model, weight):
        return False
    factor = (norm.running_var.to(torch.float64) + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().to(torch.float64)
    shift = torch.zeros(channels, dtype=torch.float64) if norm.bias is None else norm.bias.detach().to(torch.float64)
    bias = torch.zeros_like(shift) if not isinstance(old_bias, Tensor) else old_bias.detach().to(torch.float64)
    folded_bias = (bias - norm.running_mean.to(torch.float64)) * factor + shift
    scaled = weight.detach().to(torch.float64) * _spread(factor, layer, weight)
    if not bool(torch.isfinite(scaled).all() & torch.isfinite(folded_bias).all()):
        return False
    old = dict(layer._parameters)
    example = _example(layer, weight)
    wanted = _try(lambda: norm(layer(example)))
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(folded_bias.to(weight.dtype), requires_grad=False)
    found = _try(lambda: layer(example))
    if wanted is None or found is None or not _equal(found, wanted):
        layer._parameters.clear()
        layer._parameters.update(old)
        return False
    replace_module(model, norm, nn.Identity())
    return True


def _example(layer: nn.Module, weight: Tensor) -> Tensor:
    """Some input that the layer takes: two samples, a few positions beyond the kernel."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(layer, nn.Linear):
        shape: list[int] = [2, weight.shape[1]]
    else:
        channels: Any = layer.in_channels
        dilation: Any = layer.dilation
        shape = [2, int(channels), *((k - 1) * d + 4 for k, d in zip(weight.shape[2:], dilation))]
    return torch.randn(shape, generator=generator).to(weight)


def _try(call: Callable[[], Any]) -> Tensor | None:
    """What a layer gives for the example; None when its own forward does not take that."""
    try:
        with torch.no_grad():
            result = call()
    except Exception:  # noqa: BLE001  a forward of the user's own
        return None
    return result.to(torch.float64) if isinstance(result, Tensor) else None


def _equal(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape:
        return False
    return float((found - wanted).abs().max()) <= _TOLERANCE * float(wanted.abs().max().clamp(min=1e-30))


def _spread(factor: Tensor, layer: nn.Module, weight: Tensor) -> Tensor:
    """The factor of each output channel, in the weight's own layout."""
    if isinstance(layer, nn.ConvTranspose2d):  # [in, out/groups, kH, kW], groups along the input
        by_group = factor.reshape(layer.groups, 1, -1).expand(-1, weight.shape[0] // layer.groups, -1)
        return by_group.reshape(*weight.shape[:2], 1, 1)
    return factor.reshape(-1, *[1] * (weight.dim() - 1))


def _shared(model: nn.Module, weight: nn.Parameter) -> bool:
    """Whether another module holds the same parameter."""
    holders = [m for m in model.modules() if any(p is weight for p in m._parameters.values())]
    return len(holders) > 1
