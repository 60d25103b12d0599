from __future__ import annotations

import pytest
import torch

from fewbit.integer.ir import Node, Ref
from fewbit.integer.operators import clip_bounds, pointwise, read_operator

ATEN = torch.ops.aten
X = torch.zeros(2, 3, 4, 4)
A = Ref("a")


def read(target, args, kwargs=None, after=None, constants=None) -> Node:
    inputs = tuple(v.name for v in torch.utils._pytree.tree_leaves((args, kwargs or {})) if isinstance(v, Ref))
    node = Node("float", "y", inputs, target, args, kwargs or {})
    read_operator(node, X, X if after is None else after, constants or {})
    return node


@pytest.mark.parametrize(
    ("target", "args", "op"),
    [
        (ATEN.add.Tensor, (A, Ref("b")), "add"),
        (ATEN.mul.Tensor, (A, Ref("b")), "mul"),
        (ATEN.sub.Tensor, (A, Ref("b")), "float"),
        (ATEN.add.Tensor, (A, 3.0), "table"),
        (ATEN.hardswish.default, (A,), "table"),
        (ATEN.cat.default, ([A, Ref("b")], 1), "concat"),
        (ATEN.max_pool2d.default, (A, [2, 2]), "max_pool"),
        (ATEN.pad.default, (A, [1, 1], "constant", 0.0), "pad"),
        (ATEN.pad.default, (A, [1, 1], "reflect"), "float"),
        (ATEN.pad.default, (A, [1, 1], "constant", 1.0), "float"),
        (ATEN.pad.default, (A, [-1, 1]), "float"),
        (ATEN.flatten.using_ints, (A, 1), "view"),
        (ATEN.upsample_nearest2d.vec, (A, None, [2.0, 2.0]), "resize"),
        (ATEN.upsample_bilinear2d.vec, (A, None, False, [2.0, 2.0]), "float"),
        (ATEN.mean.dim, (A, [2, 3]), "avg_pool"),
        (ATEN.mean.dim, (A, [-1, -2], True), "avg_pool"),
        (ATEN.mean.dim, (A, [1]), "float"),
        (ATEN.adaptive_avg_pool2d.default, (A, [1, 1]), "avg_pool"),
        (ATEN.adaptive_avg_pool2d.default, (A, [2, 2]), "float"),
        (ATEN.avg_pool2d.default, (A, [2, 2]), "avg_pool"),
        (ATEN.avg_pool2d.default, (A, [3, 3], [1, 1], [1, 1], False, False), "float"),
        (ATEN.avg_pool2d.default, (A, [3, 3], [2, 2], [0, 0], True), "float"),
        (ATEN.softmax.int, (A, 1), "float"),
    ],
)
def test_what_each_function_is(target, args, op: str) -> None:
    assert read(target, args).op == op


def test_a_function_that_reads_a_tensor_of_the_model_stays_in_float() -> None:
    assert read(ATEN.add.Tensor, (A, Ref("b")), constants={"b": X}).op == "float"


def test_a_scaled_sum_stays_in_float() -> None:
    assert read(ATEN.add.Tensor, (A, Ref("b")), {"alpha": 2}).op == "float"


def test_functions_that_give_integers_stay_as_they_are() -> None:
    assert read(ATEN.relu.default, (A,), after=X.int()).op == "float"


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "ends"),
    [
        (ATEN.hardtanh.default, (A,), {}, (-1.0, 1.0)),
        (ATEN.hardtanh.default, (A, 0.0, 6.0), {}, (0.0, 6.0)),
        (ATEN.clamp.default, (A, None, 2), {}, (-float("inf"), 2.0)),
        (ATEN.clamp.default, (A,), {"min": 1}, (1.0, float("inf"))),
        (ATEN.clamp_max.default, (A, 3), {}, (-float("inf"), 3.0)),
        (ATEN.clamp_min.default, (A, 3), {}, (3.0, float("inf"))),
        (ATEN.sigmoid.default, (A,), {}, None),
    ],
)
def test_the_ends_of_clips(target, args, kwargs, ends) -> None:
    assert clip_bounds(Node("table", "y", ("a",), target, args, kwargs)) == ends


def test_what_works_on_each_value_alone() -> None:
    assert pointwise(Node("table", "y", ("a",), ATEN.gelu.default))
    assert not pointwise(Node("view", "y", ("a",), ATEN.flatten.using_ints))
