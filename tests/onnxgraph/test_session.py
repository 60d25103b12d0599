from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_cases import as_ir, mlp, saved

from fewbit.errors import FewbitError
from fewbit.onnxgraph.session import Runner

X = np.ones((2, 32), np.float32)


@pytest.mark.parametrize("batch", [X, torch.ones(2, 32), [X], (torch.ones(2, 32), torch.zeros(2)), {"x": X.tolist()}])
def test_batches_of_many_kinds(batch: object) -> None:
    runner = Runner(as_ir(mlp()), threads=1)
    found = runner.run(runner.feeds(batch))
    assert found["out"].shape == (2, 10)


def test_files_and_bytes(tmp_path: Path) -> None:
    expected = Runner(as_ir(mlp())).run({"x": X})["out"]
    for source in (saved(mlp(), tmp_path), mlp().SerializeToString()):
        np.testing.assert_array_equal(Runner(source).run({"x": X})["out"], expected)


def test_errors_name_the_input() -> None:
    runner = Runner(as_ir(mlp()))
    with pytest.raises(FewbitError, match="no value for the input 'x'"):
        runner.feeds({"y": X})
    with pytest.raises(FewbitError, match="not str"):
        runner.feeds("x")
    with pytest.raises(FewbitError, match="failed on the data"):
        runner.run({"x": np.ones((2, 31), np.float32)})


def test_a_graph_that_the_runtime_refuses() -> None:
    proto = mlp()
    proto.graph.node[2].op_type = "NoSuchOperator"
    with pytest.raises(FewbitError, match="refuses the graph"):
        Runner(proto.SerializeToString())


def test_an_operator_that_the_runtime_does_not_know_is_told_with_its_node() -> None:
    proto = mlp()
    proto.opset_import.add(domain="com.me", version=1)
    proto.graph.node[2].op_type, proto.graph.node[2].domain = "Foo", "com.me"
    with pytest.raises(FewbitError, match=r"com\.me:Foo.* is not a registered function/op: node 'act_node'"):
        Runner(as_ir(proto))
