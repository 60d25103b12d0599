"""Distillation from the float model: its logits, and the outputs of its blocks, as targets of the quantized one.

Logits: ``T²·KL(softmax(t/T) ‖ softmax(s/T))`` (arXiv 1503.02531, section 2), averaged over rows. Blocks: the squared
error relative to the target's own energy, ``‖s − t‖²/‖t‖²``, averaged over blocks, so that deep and shallow ones count
alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.nn import info
from fewbit.nn.check import first_tensor
from fewbit.train.layers import TrainedLayer


class Distillation:
    """The loss between a student and its teacher.

    Typical use, in any loop::

        distill = Distillation(prepared, model)
        output = prepared(x)
        loss = task_loss(output, y) + distill(output, x)

    Args:
        student: Made by :func:`fewbit.prepare_qat`.
        teacher: The float model; put into evaluation mode.
        temperature: T.
        logits: Weight of the logits' loss, 0 for none.
        blocks: Names of submodules that both have, whose outputs are compared as well.
        block_weight: Weight of their loss.

    Raises:
        FewbitError: One of the two has no module of a block's name; a block ends between a layer and its folded batch
            norm; a weight is negative, the temperature not positive, or nothing is compared.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        temperature: float = 1.0,
        logits: float = 1.0,
        blocks: Sequence[str] = (),
        block_weight: float = 1.0,
    ) -> None:
        _check(temperature, logits, block_weight, blocks)
        self.teacher = teacher.eval()
        self.temperature, self.logits, self.block_weight = temperature, logits, block_weight
        self.blocks = tuple(blocks)
        self._seen: dict[tuple[str, str], Tensor] = {}
        self._hooks = []
        self._closed = False
        for side, model in (("student", student), ("teacher", teacher)):
            for name in self.blocks:
                module = _named(model, name, side)
                self._hooks.append(module.register_forward_hook(_Watch(self._seen, (side, name), module)))

    def __call__(self, output: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of the student's last output.

        Args:
            output: What the student gave: logits ``[…, classes]``, or an output object that holds them.
            *args: What the student was given; the teacher is run on it.
            **kwargs: The same.

        Raises:
            FewbitError: The student has not run since the last loss, or the hooks are off.
        """
        self._check_seen()
        with torch.no_grad():
            target = _logits(self.teacher(*args, **kwargs))
        found = _logits(output)
        loss = found.new_zeros((), dtype=torch.float32)
        if self.logits:
            loss = loss + self.logits * logit_loss(found, target, self.temperature)
        if self.blocks and self.block_weight:
            errors = [block_loss(self._seen["student", name], self._seen["teacher", name]) for name in self.blocks]
            loss = loss + self.block_weight * torch.stack(errors).mean()
        self._seen.clear()
        return loss

    def close(self) -> None:
        """Take the hooks off both models."""
        self._closed = True
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_seen(self) -> None:
        if self._closed and self.blocks:
            raise FewbitError("the distillation is closed; make a new one to go on")
        missing = [name for name in self.blocks if ("student", name) not in self._seen]
        if missing:
            raise FewbitError(
                f"the student's block {missing[0]} has not run since the last loss; run the student first"
            )


class _Watch:
    """Keeps a block's output. A copy of the block, such as a converted or averaged model's, is not watched."""

    def __init__(self, seen: dict[tuple[str, str], Tensor], key: tuple[str, str], module: nn.Module) -> None:
        self.seen, self.key, self.module = seen, key, module

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> None:
        found = first_tensor(output)
        if found is not None and module is self.module:
            self.seen[self.key] = found

    def __reduce__(self) -> Any:
        return _nothing, ()


def _nothing() -> Any:
    """What a copied or pickled block has in place of the watch."""
    return _ignore


def _ignore(_module: nn.Module, _args: Any, _output: Any) -> None:
    """A hook without effect."""


def logit_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T²·KL`` over the last axis, the mean over the others; float32 ``()``."""
    log_student = F.log_softmax(student.float() / temperature, dim=-1).flatten(0, -2)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=-1).flatten(0, -2)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * temperature**2


def block_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``‖s − t‖²/‖t‖²``; float32 ``()``."""
    target = teacher.detach().float()
    return (student.float() - target).square().mean() / target.square().mean().clamp(min=1e-12)


def _named(model: nn.Module, name: str, side: str) -> nn.Module:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        raise FewbitError(f"the {side} has no block {name!r}; name modules that both models have") from error
    if isinstance(module, TrainedLayer) and module.folded_norm is not None:
        known = info(model)
        norm = dict(known.folded).get(name, "") if known is not None else ""
        raise FewbitError(
            f"block {name!r} ends before its batch norm, which the student's layer computes as well; "
            f"name the batch norm{f' {norm!r}' if norm else ''} instead"
        )
    return module


def _check(temperature: float, logits: float, block_weight: float, blocks: Sequence[str]) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise FewbitError(f"the temperature is a positive number, not {temperature}")
    for name, weight in (("logits", logits), ("block_weight", block_weight)):
        if not (math.isfinite(weight) and weight >= 0):
            raise FewbitError(f"{name} is a weight of 0 or more, not {weight}")
    if not logits and not (blocks and block_weight):
        raise FewbitError("nothing is distilled: give logits a weight, or name blocks")


def _logits(output: Any) -> Tensor:
    found = getattr(output, "logits", None)
    found = first_tensor(output) if found is None else found
    if not isinstance(found, Tensor):
        raise FewbitError("the model's output holds no tensor to distil")
    return found
