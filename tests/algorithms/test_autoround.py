"""AutoRound's start; what the pipeline does with it is in tests/sequential/test_reconstruct.py."""

from __future__ import annotations

import pytest
import torch

from fewbit.algorithms import autoround, gptq, rtn
from fewbit.calibrate.gram import Gram, Statistics
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec


def test_it_starts_where_it_is_told() -> None:
    torch.manual_seed(0)
    weight, spec, gram = torch.randn(8, 32), QSpec.parse("int3/g16/asym"), Gram(32, "w")
    gram.update(torch.randn(64, 32))
    seen = Statistics(gram)
    for start, wanted in (("gptq", gptq), ("rtn", rtn)):
        t = autoround.quantize_weight(weight, spec, autoround.Options(start), "w", seen)
        assert torch.equal(t.codes, wanted.quantize_weight(weight, spec, None, "w", seen).codes)
    with pytest.raises(FewbitError, match="starts from"):
        autoround.quantize_weight(weight, spec, autoround.Options("zero"), "w", seen)
