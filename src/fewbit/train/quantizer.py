"""What the fake-quantizers of all estimators share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.numbers.scale_type import round_scale
from fewbit.numbers.spec import QSpec
from fewbit.train.gradient import substitute

Grid = tuple[Tensor, Tensor | None]  # float32 scale; zero point as the affine map takes it, or None
_SMALLEST = torch.finfo(torch.float32).tiny
_SPEC_BYTES = 64


class FakeQuantizer(nn.Module):
    """Quantizes and dequantizes in training.

    A weight's quantizer sees the matrix ``[out, K]`` and is given its range at the start; an input's may find its range
    in the first batch.

    Attributes:
        spec: What it trains for.
        name: Named in errors.
        frozen: Its range stays as it is; weights are trained on.
        started: Whether it has a range.
        learned: Names of its parameters.
    """

    learned: tuple[str, ...] = ()
    started_flag: Tensor
    frozen_flag: Tensor
    spec_text: Tensor

    def __init__(self, spec: QSpec, name: str, start: Grid | None) -> None:
        super().__init__()
        self.spec, self.name = spec, name
        self.frozen, self.started = False, start is not None
        self.register_buffer("started_flag", torch.tensor(self.started))
        self.register_buffer("frozen_flag", torch.tensor(False))
        self.register_buffer("spec_text", _encoded(str(spec)))

    def learn(self, name: str, value: Tensor) -> None:
        """Register a parameter, and beside it the value that counts while it is frozen."""
        setattr(self, name, nn.Parameter(value))
        self.register_buffer(f"frozen_{name}", value.detach().clone())
        self.learned = (*self.learned, name)

    def read(self, name: str, factor: float = 1.0) -> Tensor:
        """A learned parameter, its gradient times ``factor``.

        Frozen, it is the value that it had then: an optimizer's momentum or weight decay may move the parameter on.
        """
        parameter: Tensor = getattr(self, name)
        if not self.frozen:
            return parameter if factor == 1.0 else substitute(parameter, parameter.detach(), factor)
        held: Tensor = getattr(self, f"frozen_{name}")
        # DistributedDataParallel waits for a gradient of every parameter.
        return substitute(parameter, held, 0.0) if _distributed() and torch.is_grad_enabled() else held

    @torch.no_grad()
    def freeze(self, frozen: bool) -> None:
        """Freeze at the present range, or thaw."""
        if frozen == self.frozen:
            return
        for name in self.learned:
            parameter, held = getattr(self, name), getattr(self, f"frozen_{name}")
            _ = held.copy_(parameter) if frozen else parameter.copy_(held)
        self.frozen_flag.fill_(frozen)
        self.frozen = frozen

    def grid(self, x: Tensor) -> Grid:
        """The scale and zero point that the converted model has; ``x`` is the weight, for ranges that follow it."""
        raise NotImplementedError

    def begin(self, x: Tensor) -> None:
        """Find a range in the first batch."""
        raise NotImplementedError

    def deployed(self, x: Tensor) -> Grid:
        """:meth:`grid`, detached, with the zero point in the dtype that a QTensor holds.

        Raises:
            FewbitError: There is no range yet.
        """
        if not self.started:
            raise FewbitError(
                f"{self.name} has no range yet: hand data to prepare_qat, or train a step before evaluating"
            )
        with torch.no_grad():
            scale, zero_point = self.grid(x)
        if zero_point is not None:
            zero_point = zero_point.detach().to(torch.int32 if self.spec.format.is_integer else torch.float32)
        return scale.detach().float(), zero_point

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        found = state_dict.get(f"{prefix}spec_text")
        if isinstance(found, Tensor) and _decoded(found) != _decoded(self.spec_text):
            raise FewbitError(
                f"{self.name} is prepared for {self.spec}, the state was trained for {_decoded(found)}; "
                "prepare the model with the recipe that the state comes from"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.started, self.frozen = bool(self.started_flag), bool(self.frozen_flag)

    @torch.no_grad()
    def _mark_started(self) -> None:
        self.started_flag.fill_(True)
        self.started = True
        if self.frozen:
            for name in self.learned:
                getattr(self, f"frozen_{name}").copy_(getattr(self, name))

    def extra_repr(self) -> str:
        """The spec."""
        return f"{self.spec}{', frozen' if self.frozen else ''}"


def positive(scale: Tensor, spec: QSpec) -> Tensor:
    """A trained scale as the affine map takes it: positive, normal, rounded to the spec's scale type; the gradient
    passes the rounding.

    A step that training carries below 0 counts by its magnitude.
    """
    safe = wide(scale).abs().clamp(min=_SMALLEST)
    return safe if spec.scale_type == "f32" else substitute(safe, round_scale(safe.detach(), spec))


def wide(value: Tensor) -> Tensor:
    """float32, or float64 as it is."""
    return value if value.dtype == torch.float64 else value.float()


def agreed(value: Tensor) -> Tensor:
    """The mean over all processes of a distributed run, so that each starts from the same range."""
    if not _distributed():
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _encoded(text: str) -> Tensor:
    """As bytes of fixed length: what stores tensors alone, such as safetensors, keeps it too."""
    return torch.tensor(list(text.encode().ljust(_SPEC_BYTES)[:_SPEC_BYTES]), dtype=torch.uint8)


def _decoded(text: Tensor) -> str:
    return bytes(text.flatten().tolist()).decode(errors="replace").strip()
