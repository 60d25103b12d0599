"""fewbit's own layers, as a user gets them from :func:`fewbit.quantize`."""

from __future__ import annotations

import copy

from torch import nn

import fewbit
from fewbit.bench.case import Case, Contender, Run


def schemes(case: Case) -> list[str]:
    """Float activations and activations quantized on the fly, with the case's weights."""
    group = f"-g{case.group}" if case.group else ""
    return [f"W{case.bits}A16{group}", f"W{case.bits}A8-dynamic{group}"]


def own(case: Case) -> list[Contender]:
    """A contender for each scheme."""
    return [_contender(case, scheme) for scheme in schemes(case)]


def _contender(case: Case, scheme: str) -> Contender:
    layer = nn.Linear(case.k, case.n, bias=False)
    layer.weight.data = case.weight
    made = fewbit.quantize(nn.Sequential(layer).eval(), scheme, calibrator="minmax")

    def run(module: nn.Module) -> Run:
        return lambda: module(case.x)

    nbytes = case.packed_bytes(2 if case.group else 4)
    copies = [run(copy.deepcopy(made)) for _ in range(case.copies(nbytes))]
    return Contender(f"fewbit {scheme}", copies, nbytes)
