"""Values as JSON: exactly the same type and value back, and nothing else is taken."""

from __future__ import annotations

import collections
import enum
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.formats.architecture.values import DTYPES, Undescribable, decode, dtype_name, encode

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([*DTYPES.values(), torch.channels_last, torch.preserve_format, torch.device("cpu"), Ellipsis]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.builds(slice, inner, inner, inner)
    ),
    max_leaves=10,
)


def through_json(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    if isinstance(one, slice):
        return all(map(same, (one.start, one.stop, one.step), (other.start, other.stop, other.step)))
    return bool(one == other)


@given(VALUES)
def test_every_value_comes_back_with_its_type(value: Any) -> None:
    assert same(through_json(value), value)


def test_floats_that_json_lacks() -> None:
    assert math.isnan(through_json(math.nan))
    assert through_json(math.inf) == math.inf
    assert through_json(-math.inf) == -math.inf
    assert math.copysign(1, through_json(-0.0)) == -1


def test_sizes_are_tuples() -> None:
    assert through_json(torch.Size([2, 3])) == (2, 3)


def test_nodes_go_by_their_index() -> None:
    nodes = [object(), object()]
    written = encode([nodes[1], (nodes[0], 3)], lambda each: nodes.index(each) if each in nodes else None)
    assert written == [{"node": 1}, {"tuple": [{"node": 0}, 3]}]
    assert decode(written, nodes) == [nodes[1], (nodes[0], 3)]


class Color(enum.IntEnum):
    RED = 1


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "value",
    [
        object(), len, torch, torch.nn.ReLU(), torch.ones(1), Color.RED, Pair(1, 2), collections.OrderedDict(a=1),
        {1: 2}, {1, 2}, b"bytes", 1j, torch.device("meta"), torch.strided, type, range(3),
    ],
    ids=repr,
)  # fmt: skip
def test_other_types_are_not_written(value: Any) -> None:
    with pytest.raises(Undescribable):
        encode(value)
    with pytest.raises(Undescribable):
        encode([value])


@pytest.mark.parametrize(
    "value",
    [
        {}, {"tuple": [1], "slice": [1]}, {"tuple": 3}, {"slice": [1, 2]}, {"slice": None}, {"dict": [[1, 2]]},
        {"dict": [["a"]]}, {"dict": [["a", 1, 2]]}, {"dict": {"a": 1}}, {"dtype": "load"}, {"dtype": 3},
        {"dtype": ["float32"]}, {"dtype": "Tensor"}, {"device": "cuda"}, {"device": None}, {"memory_format": "x"},
        {"float": "1.5"}, {"float": 1.0}, {"node": 0}, {"node": True}, {"node": -1}, {"node": "0"}, {"ellipsis": 1},
        {"function": "os.system"}, {"": 1}, {"__class__": "x"},
    ],
    ids=str,
)  # fmt: skip
def test_other_forms_are_not_read(value: Any) -> None:
    with pytest.raises(ValueError):
        decode(value)
    with pytest.raises(ValueError):
        decode([[value]])


def test_a_node_must_come_before_its_use() -> None:
    assert decode({"node": 1}, ["a", "b"]) == "b"
    with pytest.raises(ValueError):
        decode({"node": 2}, ["a", "b"])


def test_types_of_tensors_have_names() -> None:
    assert all(dtype_name(dtype) == name == str(dtype).removeprefix("torch.") for name, dtype in DTYPES.items())
    with pytest.raises(Undescribable, match="qint8"):
        dtype_name(torch.qint8)
