"""Activation quantizers of a placement: what to collect, and the codes that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from fewbit import calibrate
from fewbit.calibrate.statistic import Statistic
from fewbit.numbers.granularity import PerTensor
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph.codes import Codes
from fewbit.onnxgraph.placement import Placement


def new_statistics(placement: Placement, calibrator: str, options: Mapping[str, Any]) -> dict[str, list[Statistic]]:
    """One empty statistic for each tensor to observe."""
    module = calibrate.get(calibrator)
    chosen = module.Options(**options)
    names = [name for group in placement.observed.values() for name in group]
    return {name: [module.new_statistic(PerTensor(), chosen, name)] for name in names}


def merged(placement: Placement, statistics: dict[str, list[Statistic]]) -> dict[str, Statistic]:
    """The statistic of each group: those of its tensors together."""
    return {
        group: reduce(lambda a, b: a.merge(b), [statistics[name][0] for name in names])
        for group, names in placement.observed.items()
    }


def solve(
    groups: Mapping[str, Statistic], calibrator: str, options: Mapping[str, Any], spec: QSpec
) -> dict[str, Codes]:
    """The quantizer of each group.

    Raises:
        FewbitError: A tensor saw no data.
    """
    module = calibrate.get(calibrator)
    chosen = module.Options(**options)
    return {name: Codes.of(module.solve(statistic, spec, chosen), spec, name) for name, statistic in groups.items()}
