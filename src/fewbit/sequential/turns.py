"""Which groups of a block's layers are calibrated together.

With codes of 4 bits and more each group comes in a turn of its own, on what the quantized layers before it put out.
With fewer bits those behind attention come together: what a function of coarsely quantized layers puts out is a worse
guide for the layer behind it than what the float ones do. On Gemma-3-270M at 3 bits, judged on windows beside the
published ones, that gave a KL divergence of 0.526 from the float model; all groups of a block together 0.531. At 2 bits
it is the other way round, 1.337 and 1.290 on the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fewbit.models.layout import Block
from fewbit.recipe import LayerPlan

Turn = tuple[int, ...]

_FEWEST_BITS = 4


def turns_of(block: Block, groups: Sequence[Sequence[LayerPlan]]) -> list[Turn]:
    """The numbers of the groups that are calibrated together, in no certain order of turns."""
    behind = [number for number, group in enumerate(groups) if group[0].name in block.behind_attention]
    plans = [plan for number in behind for plan in groups[number]]
    coarse = any(plan.scheme is not None and plan.scheme.weights.bits < _FEWEST_BITS for plan in plans)
    if not coarse or len(behind) < 2:
        return [(number,) for number in range(len(groups))]
    return [(number,) for number in range(len(groups)) if number not in behind] + [tuple(behind)]


def what_runs(model: nn.Module, block: str, names: Sequence[str]) -> str:
    """The smallest module of a block that runs all these layers: their nearest common one that is called itself."""
    paths = [name.split(".")[:-1] for name in names]
    depth = next((i for i, parts in enumerate(zip(*paths)) if len(set(parts)) > 1), min(map(len, paths)))
    path = paths[0][:depth]
    while len(path) > len(block.split(".")) and _only_holds(model.get_submodule(".".join(path))):
        path = path[:-1]
    return ".".join(path)


def _only_holds(module: nn.Module) -> bool:
    return type(module).forward is nn.Module.forward
