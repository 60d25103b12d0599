"""``calibrator="best"`` on a graph: each tensor's calibrator by what its codes do to the layers that read it.

One more pass over a part of the data. A tensor that several layers read gets the candidate of the least sum of their
relative errors; one that no layer reads (only additions, say) is judged by its own error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fewbit.calibrate import best
from fewbit.calibrate.patches import patch_rows
from fewbit.calibrate.statistic import Statistic
from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import observe
from fewbit.onnxgraph.codes import Codes
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxgraph.means import geometry
from fewbit.onnxgraph.placement import Placement

_ROWS = 1024  # of one layer and one piece of data


def choose(
    model: Any, placement: Placement, groups: Mapping[str, Statistic], batches: list[Any], spec: QSpec
) -> tuple[dict[str, Codes], dict[str, str]]:
    """The quantizer of each group, and the name of the calibrator that it comes from.

    Args:
        model: The simplified float model.
        placement: Where quantizers stand.
        groups: The statistic of each group.
        batches: A part of the data.
        spec: Of the activations.
    """
    ranges = {group: best.candidates(statistic, spec) for group, statistic in groups.items()}
    readers: dict[str, list[Layer]] = {}
    for layer in placement.layers:
        if layer.kind != "ConvTranspose" and len(layer.weight.const_value.shape) < 5:
            readers.setdefault(layer.node.inputs[0].name, []).append(layer)
    errors = {group: dict.fromkeys(candidates, 0.0) for group, candidates in ranges.items()}

    def see(tensors: dict[str, np.ndarray], samples: int) -> None:
        for name, array in tensors.items():
            x, group = torch.from_numpy(array), placement.group[name]
            for rows, weight in _products(x, readers.get(name, [])):
                for chosen, error in best.output_errors(rows, weight, ranges[group], spec).items():
                    errors[group][chosen] += error * samples

    observe.stream(model, list(placement.coded), batches, see, stage="choose calibrators")
    chosen = {group: min(ranges[group], key=lambda name: errors[group][name]) for group in groups}
    codes = {group: Codes.of(ranges[group][name], spec, group) for group, name in chosen.items()}
    return codes, chosen


def _products(x: torch.Tensor, layers: list[Layer]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """What each layer multiplies, and by what: ``[groups, n, K]`` and ``[groups, out, K]``."""
    if not layers:
        one = torch.ones(1, 1, 1)
        return [(x.reshape(1, -1, 1)[:, :: max(1, x.numel() // (1 << 16))], one)]
    found = []
    for layer in layers:
        rows = patch_rows(x, geometry(layer, tuple(x.shape[1:])), _ROWS)
        matrix = layer.matrix()
        found.append((rows, matrix.reshape(rows.shape[0], -1, matrix.shape[1])))
    return found
