"""What fake-quantizers share."""

from __future__ import annotations

import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec
from fewbit.train.estimators import lsq
from fewbit.train.quantizer import agreed, positive, wide


def test_positive_keeps_normal_scales_and_passes_the_gradient_through_rounding() -> None:
    scale = torch.tensor([0.1, -0.1, 0.0], requires_grad=True)
    out = positive(scale, QSpec.parse("int4/channel/sym/f16"))
    assert torch.equal(out[0], torch.tensor(0.1).half().float())
    assert torch.equal(out[0], out[1])
    assert out[2] > 0
    out[:2].sum().backward()
    assert scale.grad[:2].tolist() == [1.0, -1.0]


def test_one_process_agrees_with_itself_and_float64_stays() -> None:
    value = torch.tensor([1.0, 2.0])
    assert agreed(value) is value
    assert wide(value.half()).dtype == torch.float32
    assert wide(value.double()).dtype == torch.float64


def test_a_quantizer_without_a_range_names_itself_and_the_remedy() -> None:
    quantizer = lsq.input_quantizer(QSpec.parse("uint4/tensor/asym"), None, "the input of body.3")
    with pytest.raises(FewbitError, match=r"the input of body\.3 has no range yet: hand data to prepare_qat"):
        quantizer.deployed(torch.empty(0))
    assert "uint4/tensor/asym" in repr(quantizer)
