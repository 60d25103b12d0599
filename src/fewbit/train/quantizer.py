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


class FakeQuantizer(nn.Module):
    """Quantizes and dequantizes in training.

    A weight's quantizer sees the matrix ``[out, K]`` and is given its range at the start; an input's may find its range
    in the first batch.

    Attributes:
        spec: What it trains for.
        name: Named in errors.
        frozen: Its range stays as it is; weights are trained on.
        started: Whether it has a range.
    """

    started_flag: Tensor

    def __init__(self, spec: QSpec, name: str, start: Grid | None) -> None:
        super().__init__()
        self.spec, self.name = spec, name
        self.frozen, self.started = False, start is not None
        self.register_buffer("started_flag", torch.tensor(self.started))

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

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.started = bool(self.started_flag)

    def _mark_started(self) -> None:
        self.started_flag.fill_(True)
        self.started = True

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
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
