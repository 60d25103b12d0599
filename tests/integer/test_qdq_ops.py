from __future__ import annotations

import torch

from fewbit.integer import qdq_ops


def test_the_operators_pass_torchs_own_checks() -> None:
    x = torch.randn(2, 4, 5, 5)
    torch.library.opcheck(qdq_ops.qdq, (x, 0.1, 3, 0, 255), test_utils="test_schema")
    codes, scale = torch.randint(-8, 8, (6, 2, 3, 3), dtype=torch.int8), torch.rand(6)
    bias, step = torch.randint(-9, 9, (6,), dtype=torch.int32), torch.rand(6)
    walk = ([2, 1], [0, 1], [1, 1], [1, 1], 2)
    for operator, arguments in (
        (qdq_ops.qdq_conv, (x, codes, scale, bias, step, *walk)),
        (qdq_ops.qdq_linear, (x[..., :3], torch.ones(6, 3, dtype=torch.int8), scale, bias, step)),
        (qdq_ops.global_average, (x,)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_round_trip() -> None:
    x = torch.tensor([-1.0, 0.04, 0.06, 99.0])
    assert torch.allclose(qdq_ops.qdq(x, 0.1, 3, 0, 255), torch.tensor([-0.3, 0.0, 0.1, 25.2]))
