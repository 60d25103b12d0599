"""bitsandbytes: NF4 weights in blocks of 64, bfloat16 activations."""

from __future__ import annotations

import importlib
import logging

import torch
from torch import nn

from fewbit.bench.case import Case, Contender, PeerUnavailable, Run

_BLOCK = 64


def contenders(case: Case) -> list[Contender]:
    """NF4, whatever the case's groups."""
    if case.bits != 4:
        raise PeerUnavailable("serves 4 bits alone on CPU")
    try:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        bnb = importlib.import_module("bitsandbytes")
    except ImportError:
        raise PeerUnavailable("bitsandbytes is not installed (pip install 'fewbit[bench]')") from None
    x = case.x.to(torch.bfloat16)
    nbytes = case.n * case.k // 2 + case.n * case.k // _BLOCK * 4

    def run(layer: nn.Module) -> Run:
        return lambda: layer(x)

    copies = []
    for _ in range(case.copies(nbytes)):
        layer = bnb.nn.Linear4bit(case.k, case.n, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.weight.data = case.weight.clone()
        copies.append(run(layer.to("cpu").eval()))
    return [Contender("bitsandbytes NF4", copies, nbytes)]
