"""Sentences on calibration data that is too little for what an algorithm fits to it."""

from __future__ import annotations

from collections.abc import Sequence

from fewbit.recipe import LayerPlan
from fewbit.sequential.calibration import HELD_BACK_EVERY, columns
from fewbit.sequential.work import Work
from fewbit.wording import counted

_ROWS = 2  # for each input: with fewer G is close to singular, or is, and what is fitted to it holds on it alone


def few_windows(work: Work) -> list[str]:
    """A note where an algorithm's candidates are judged on the data that they were fitted to."""
    count = len(work.windows)
    if "held_back" not in work.settings.rounding.NEEDS or count >= HELD_BACK_EVERY:
        return []
    note = (
        f"{work.settings.algorithm} keeps every eighth window to judge its candidates; of {counted(count, 'window')} "
        "it keeps none and judges them on what they were fitted to. Give 8 or more"
    )
    return [note]


def few_positions(work: Work, plans: Sequence[LayerPlan], positions: int) -> list[str]:
    """A note on layers with many inputs for so few rows of data.

    Args:
        work: The run.
        plans: The layers of a stack of blocks.
        positions: Rows that go through it.
    """
    if not work.settings.needs_data:
        return []
    widths = {plan.name: columns(work, (plan,)) for plan in plans}
    thin = {name: width for name, width in widths.items() if positions < _ROWS * width}
    if not thin:
        return []
    widest = max(thin, key=lambda name: thin[name])
    more = f" and {counted(len(thin) - 1, 'more layer')}" if len(thin) > 1 else ""
    note = (
        f"the calibration data has {counted(positions, 'position')}, less than two for each of the {thin[widest]} "
        f"inputs of {widest}{more}: what {work.settings.algorithm} fits to so few may not hold on other "
        "data. Give more windows or longer ones"
    )
    return [note]
