"""Scales of quantized weights and gains of norms, tuned as a whole so that the model says what the float model says.

Weights are rounded layer by layer, each to its own output. What then is left is settled here, on the output of the
whole model: the KL divergence from the float model's distribution where it gives logits (as end-to-end quantization
parameters are trained in EfficientQAT, arXiv 2407.11062, and norms in arXiv 2309.02784), else the squared error of its
output. Codes stay, so the model neither grows nor changes its layout. A part of the data judges; where it does not
agree that the result is better, nothing changes.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.algorithms._reconstruction import Learned, Part, Schedule, learn, relative_error
from fewbit.calibrate.collect import Progress
from fewbit.errors import failing
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn import kinds
from fewbit.nn.check import first_tensor
from fewbit.nn.fast_float import fast_float
from fewbit.nn.quantizers import DynamicQuantizer
from fewbit.nn.swap import quantized_layers, quantized_weight
from fewbit.nn.weight import PackedWeight
from fewbit.numbers.qtensor import QTensor

# Beyond so many parameters the passes back and forth through the whole model take hours on a CPU.
LARGEST = 10**9
# Positions of a window whose logits are compared; a vocabulary of 262,144 makes each cost as much as a block.
_POSITIONS = 64
_EPOCHS = 1


def tune(
    original: nn.Module,
    quantized: nn.Module,
    windows: Sequence[Mapping[str, Any]],
    schedule: Schedule | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Tune a quantized model in place.

    Args:
        original: The float model, in evaluation mode; unchanged.
        quantized: Made from it.
        windows: Calibration data: arguments of the model by name.
        schedule: How; None: one pass over the data.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        A note for the user.
    """
    start = tunable(original, quantized)
    if not start:
        return []
    if sum(parameter.numel() for parameter in original.parameters()) > LARGEST:
        return ["scales and norms were not tuned on the whole model, which is too large for that"]
    schedule = schedule or Schedule(
        steps=max(1, _EPOCHS * len(windows) * 7 // 8), batch=1, rounding=0, scales=1e-3, free=1e-3
    )
    parameters = dict(original.named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        compared = _Compared(original, fixed_values(original, quantized, start), windows)
        part = Part(
            compared.forward,
            matrices(original, start),
            start,
            range(len(windows)),
            range(len(windows)),
            compared.loss,
            {name: value.detach() for name, value in quantized.named_parameters() if _is_gain(name, value, parameters)},
        )
        learned = learn(part, schedule, progress)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    judged = "data held back" if 0 < schedule.held_back <= len(windows) else "the data it was tuned on"
    return _taken(quantized, learned, f"{compared.measure} on {judged}")


class _Compared:
    """The float model under other values, beside itself."""

    def __init__(self, model: nn.Module, fixed: Mapping[str, Tensor], windows: Sequence[Mapping[str, Any]]) -> None:
        self.model, self.fixed = model, fixed
        self.head: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
        self.windows = [dict(window) for window in windows]
        self.measure = "the squared error of the output"
        if "logits_to_keep" in inspect.signature(model.forward).parameters:
            self.measure = "the KL divergence"
            generator = torch.Generator().manual_seed(0)
            for window in self.windows:
                length = max(value.shape[-1] for value in window.values() if isinstance(value, Tensor))
                window["logits_to_keep"] = torch.randperm(length, generator=generator)[:_POSITIONS].sort().values
        if "use_cache" in inspect.signature(model.forward).parameters:
            for window in self.windows:
                window["use_cache"] = False

    def forward(self, values: Mapping[str, Tensor], window: int) -> Tensor:
        """The output under these values."""
        return self._output({**self.fixed, **as_parameters(self.model, values)}, window)

    def loss(self, output: Tensor, window: int) -> Tensor:
        """How far the output is from the float model's."""
        with torch.no_grad():
            target = self._output({}, window)
        if self.measure != "the KL divergence":
            return relative_error(output, target)
        ours, theirs = (torch.log_softmax(t.float().flatten(0, -2), dim=-1) for t in (output, target))
        return torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean")

    def _output(self, values: Mapping[str, Tensor], window: int) -> Tensor:
        device = next(self.model.parameters()).device
        what = f"the model failed on calibration window {window + 1} while scales and norms were tuned"
        with fast_float(device), _exact(self.head, device), failing(what, "mend the data or the model"):
            output = first_tensor(torch.func.functional_call(self.model, dict(values), (), self.windows[window]))
        assert output is not None  # the pipeline checked the model's output
        return output


@contextlib.contextmanager
def _exact(head: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Logits in float32: bfloat16 would round those of 16 and more to sixteenths, and the divergence with them."""
    if head is None:
        yield
        return
    inside = contextlib.ExitStack()

    def enter(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        inside.enter_context(torch.autocast(device.type, enabled=False))
        return tuple(value.float() if isinstance(value, Tensor) else value for value in args)

    hooks = (
        head.register_forward_pre_hook(enter),
        head.register_forward_hook(lambda *_: inside.close(), always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        inside.close()


def learnable(kind: str | None, bits: int, static: bool) -> bool:
    """Whether a layer's codes and scales can be learned: few bits, and an input that is float or gets its codes when it
    comes, which learning looks past."""
    return kind in ("Linear", "Conv1D") and bits < 8 and not static


def tunable(original: nn.Module, quantized: nn.Module) -> dict[str, QTensor]:
    """The weights ``[out, K]``, by their names in the float model, of linear layers that are :func:`learnable`."""
    parameters = dict(original.named_parameters())
    found = {}
    for name, layer in quantized_layers(quantized).items():
        weight, parameter = quantized_weight(layer), parameters.get(f"{name}.weight")
        if parameter is None:
            continue
        module = original.get_submodule(name)
        static = not isinstance(weight.input_quantizer, DynamicQuantizer | None)
        few = learnable(kinds.kind(module), weight.packed.spec.bits, static) and not kinds.has_own_forward(module)
        if few and tuple(kinds.as_matrix(module, parameter).shape) == weight.packed.matrix_shape:
            found[f"{name}.weight"] = weight.weight_qtensor()
    return found


def matrices(original: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Float weights of a model as ``[out, K]``."""
    parameters = dict(original.named_parameters())
    return {name: kinds.as_matrix(_owner(original, name), parameters[name].detach()) for name in names}


def as_parameters(original: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices ``[out, K]`` as the model's own layers hold them; other values as they are."""
    return {name: value.t() if _is_turned(original, name) else value for name, value in values.items()}


def _is_turned(original: nn.Module, name: str) -> bool:
    return name.endswith("weight") and kinds.kind(_owner(original, name)) == "Conv1D"


def _owner(original: nn.Module, name: str) -> nn.Module:
    return original.get_submodule(name.rpartition(".")[0])


def fixed_values(original: nn.Module, quantized: nn.Module, start: Mapping[str, QTensor]) -> dict[str, Tensor]:
    """What else the quantized model has other than the float one: biases, and weights that are not tuned."""
    parameters, fixed = dict(original.named_parameters()), {}
    for name, layer in quantized_layers(quantized).items():
        bias, own = getattr(layer, "bias", None), parameters.get(f"{name}.bias")
        if isinstance(bias, Tensor) and own is not None:
            fixed[f"{name}.bias"] = bias.detach().to(own.dtype)
        key = f"{name}.weight"
        own = parameters.get(key)
        if key not in start and own is not None and kinds.kind(original.get_submodule(name)) != "ConvTranspose2d":
            matrix = quantized_weight(layer).weight_qtensor().dequantize()
            fixed[key] = as_parameters(original, {key: matrix})[key].reshape(own.shape).to(own.dtype)
    return fixed


def _is_gain(name: str, value: Tensor, parameters: Mapping[str, Tensor]) -> bool:
    return name in parameters and value.dim() == 1 and "norm" in name.lower() and name.endswith("weight")


def put(packed: PackedWeight, t: QTensor) -> None:
    """Give a packed weight other codes and scales of the same spec and shape."""
    matrix = PackedMatrix.pack(t)
    packed.codes, packed.scale = matrix.codes, matrix.scale


@torch.no_grad()
def _taken(quantized: nn.Module, learned: Learned, measure: str) -> list[str]:
    """Put what was learned into the quantized model."""
    if learned.after >= learned.before:
        return [f"tuning scales and norms did not lower {measure} ({learned.before:.4g})"]
    for name, t in learned.weights.items():
        packed = quantized_weight(quantized.get_submodule(name.removesuffix(".weight"))).packed
        put(packed, t)
    parameters = dict(quantized.named_parameters())
    for name, value in learned.free.items():
        parameters[name].copy_(value)
    fell = f"fell from {learned.before:.4g} to {learned.after:.4g}"
    return [f"scales and norms were tuned on the whole model: {measure} {fell}"]
