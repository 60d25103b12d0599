"""torchao's dynamic int8 layers (its int4 layers on CPU are torch's own int4pack kernel, raced as torch)."""

from __future__ import annotations

import importlib
import warnings

from torch import nn

from fewbit.bench.case import Case, Contender, PeerUnavailable, Run


def contenders(case: Case) -> list[Contender]:
    """int8 weights by channel, activations quantized by token."""
    if case.bits != 8 or case.group:
        raise PeerUnavailable("serves int8 by channel alone on CPU")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ao = importlib.import_module("torchao.quantization")
    except ImportError:
        raise PeerUnavailable("not installed (pip install 'fewbit[bench]')") from None
    nbytes = case.packed_bytes(4)

    def run(layer: nn.Module) -> Run:
        return lambda: layer(case.x)

    copies = []
    for _ in range(case.copies(nbytes)):
        layer = nn.Sequential(nn.Linear(case.k, case.n, bias=False))
        layer[0].weight.data = case.weight.clone()
        ao.quantize_(layer, ao.Int8DynamicActivationInt8WeightConfig())
        copies.append(run(layer))
    return [Contender("torchao dynamic int8", copies, nbytes)]
