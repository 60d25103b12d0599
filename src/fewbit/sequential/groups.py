"""Which layers of a block share an input: from the family's table, or seen while the block runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from fewbit.models import generic
from fewbit.models.layout import Block
from fewbit.recipe import LayerPlan
from fewbit.sequential.ranks import Ranks

Group = tuple[LayerPlan, ...]


def shared_inputs(
    block: Block, module: nn.Module, plans: Sequence[LayerPlan], run: Callable[[], object] | None, ranks: Ranks
) -> list[Group]:
    """Group the planned layers of a block by the input they share.

    Args:
        block: With its linears by shared input.
        module: The block.
        plans: The layers to group.
        run: Runs the block on a window, to see what it shares; None where the table knows.
        ranks: The first process looks, and tells the others.
    """
    found = [list(group.linears) for group in block.groups]
    if run is not None:
        if ranks.first:
            found = [list(group.linears) for group in generic.shared_inputs(module, run, block.name)]
        found = ranks.tell(found)
    by_name = {plan.name: plan for plan in plans}
    groups = [tuple(by_name.pop(name) for name in members if name in by_name) for members in found]
    return [group for group in groups if group] + [(plan,) for plan in by_name.values()]
