"""The sequential pipeline on a model that is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fewbit.calibrate.collect import Progress
from fewbit.models import layout
from fewbit.models.layout import Layout
from fewbit.nn.tune import tune
from fewbit.recipe import LayerPlan
from fewbit.sequential.blocks import run_stacks, run_tail
from fewbit.sequential.packing import swap_tied
from fewbit.sequential.solve import Settings
from fewbit.sequential.windows import windows
from fewbit.sequential.work import Work


class InMemory:
    """A model whose blocks are there all the time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def load(self, name: str, compute: str) -> None:
        """Nothing to do."""

    def unload(self, name: str) -> None:
        """Nothing to do."""

    def finished(self, name: str) -> bool:
        """Every run starts at the beginning."""
        return False

    def release(self, name: str, notes: Sequence[str]) -> None:
        """Nothing to do."""


def has_blocks(model: nn.Module) -> bool:
    """Whether a model is one of transformers that the pipeline goes through block by block."""
    config = getattr(model, "config", None)
    return hasattr(config, "model_type") and bool(layout(model).blocks)


def quantize_blocks(
    model: nn.Module,
    plans: Sequence[LayerPlan],
    batches: Iterable[Any],
    settings: Settings,
    progress: Progress | None = None,
) -> list[str]:
    """Quantize a model in place, block after block.

    Args:
        model: In evaluation mode; fused experts are split already.
        plans: For every layer.
        batches: Calibration data, see :func:`fewbit.sequential.windows.windows`.
        settings: How layers are quantized.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        Notes for the user.

    Raises:
        FewbitError: The model does not run its blocks one after another, or values are not finite.
    """
    where = layout(model)
    data = windows(batches, getattr(model, "main_input_name", "input_ids"))
    work = Work(InMemory(model), data, settings, plans, where.family == "generic", progress=progress)
    before, behind = outside(model, where, plans)
    for tied in before:
        swap_tied(model, tied, data_free(settings))
    run_stacks(work, where.stacks)
    return work.whole + work.notes + run_tail(work, behind, [plan for tied in before for plan in tied])


def tune_model(
    original: nn.Module, quantized: nn.Module, batches: Iterable[Any], progress: Progress | None = None
) -> list[str]:
    """:func:`fewbit.nn.tune.tune` on the pipeline's windows; the float model is in training mode again if it was.

    Returns:
        Notes for the user.
    """
    was_training = original.training
    try:
        data = windows(batches, getattr(original, "main_input_name", "input_ids"))
        return tune(original.eval(), quantized, data, progress=progress)
    finally:
        original.train(was_training)


def outside(
    model: nn.Module, where: Layout, plans: Sequence[LayerPlan]
) -> tuple[list[list[LayerPlan]], list[LayerPlan]]:
    """The planned layers outside of the blocks.

    Returns:
        Those that are rounded without data, tied ones together, and those behind the last block.
    """
    blocks = tuple(f"{block.name}." for block in where.blocks)
    names = [name for name, _ in model.named_modules()]
    last = max((names.index(block.name) for block in where.blocks), default=-1)
    loose = [plan for plan in plans if plan.scheme is not None and not plan.name.startswith(blocks)]
    tied: dict[int, list[LayerPlan]] = {}
    for plan in loose:
        tied.setdefault(id(model.get_submodule(plan.name).weight), []).append(plan)
    behind = [
        group[0]
        for group in tied.values()
        if len(group) == 1 and names.index(group[0].name) > last and group[0].kind != "Embedding"
    ]
    return [group for group in tied.values() if group[0] not in behind], behind


def data_free(settings: Settings) -> Settings:
    """The settings for layers that are rounded without data."""
    return replace(settings, algorithm="rtn", bias_correction=False) if settings.needs_data else settings
