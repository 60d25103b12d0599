from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_cases import branching, looping, mlp, saved

from fewbit.errors import FewbitError
from fewbit.onnxgraph import checks, file


@pytest.mark.parametrize("proto", [branching(), looping()])
def test_subgraphs_may_read_what_is_computed_before_them(tmp_path: Path, proto: onnx.ModelProto) -> None:
    onnx.checker.check_model(proto, full_check=True)
    model = file.read(saved(proto, tmp_path))
    node = next(node for node in model.graph if checks.subgraphs(node))
    assert set(checks.read_outside(node)) == ({"a", "inner.w"} if node.op_type == "If" else {"a"})


def test_a_subgraph_that_reads_nothing_is_named(tmp_path: Path) -> None:
    proto = branching()
    branch = next(a.g for node in proto.graph.node for a in node.attribute if a.name == "else_branch")
    branch.node[0].input[0] = "nowhere"
    with pytest.raises(FewbitError, match=r"node 'e_node' \(Neg\) reads 'nowhere'"):
        file.read(saved(proto, tmp_path))


def test_a_broken_node_in_a_subgraph_is_told_whole(tmp_path: Path) -> None:
    proto = branching()
    branch = next(a.g for node in proto.graph.node for a in node.attribute if a.name == "else_branch")
    branch.node[0].op_type = "NoSuchOperator"
    with pytest.raises(FewbitError, match=r"node 'if_node' \(If\) is broken: .*NoSuchOperator"):
        file.read(saved(proto, tmp_path))


@pytest.mark.parametrize("dims", [[10**9, 48], [32, 47], [-1, 48]])
def test_a_constant_whose_data_does_not_fill_its_dims_is_named(tmp_path: Path, dims: list[int]) -> None:
    proto = mlp()
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    with pytest.raises(FewbitError, match=r"tensor 'first\.w' is broken: .* the dims \["):
        file.read(saved(proto, tmp_path))


def test_external_data_that_does_not_fill_its_dims_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(mlp(), path, save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=False)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].dims[0] = 31
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(FewbitError, match=r"tensor 'first\.w' is broken: 6144 bytes"):
        file.read(path)


def test_messages_are_not_cut_behind_a_colon() -> None:
    assert checks.first_line(ValueError("input 'a' of node:\nname: x\nmore")) == "input 'a' of node: name: x"
    assert checks.first_line(ValueError("one\ntwo")) == "one"
    assert checks.first_line(ValueError()) == "ValueError"


def test_constants_of_subgraphs_are_constants(tmp_path: Path) -> None:
    proto = branching()
    inner = next(a.g for node in proto.graph.node for a in node.attribute if a.name == "else_branch")
    inner.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "own"))
    inner.node.append(helper.make_node("Identity", ["own"], ["unused"]))
    model = file.read(saved(proto, tmp_path))
    assert "own" in {value.name for value in checks.initializers(model)}
