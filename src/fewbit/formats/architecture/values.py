"""The values a model's description may hold, as JSON.

None, bool, int, float, str and list stand for themselves. Everything else is an object with one member whose
name says what it is::

    {"tuple": [1, 2]}   {"slice": [0, null, 2]}   {"dict": [["key", value], ...]}   {"ellipsis": null}
    {"dtype": "float32"}   {"device": "cpu"}   {"memory_format": "channels_last"}   {"float": "inf"}
    {"node": 3}

``{"node": i}`` refers to the i-th node of a graph. Reading gives objects of exactly these types and never
looks up a name outside the two tables below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float8_e4m3fn", "float8_e5m2"),
    )
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MEMORY_FORMATS: dict[str, torch.memory_format] = {
    name: getattr(torch, name) for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")
}
_MEMORY_FORMAT_NAMES = {memory_format: name for name, memory_format in _MEMORY_FORMATS.items()}
_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class Undescribable(Exception):
    """This part of a model cannot be written down; the text says which, in words fit for a message."""


def dtype_name(dtype: torch.dtype) -> str:
    """The name under which a tensor type is written, for example ``"float32"``."""
    if dtype not in _DTYPE_NAMES:
        raise Undescribable(f"tensors of type {dtype}")
    return _DTYPE_NAMES[dtype]


def encode(value: Any, node: Callable[[Any], int | None] = lambda _: None) -> Json:
    """Write a value as JSON.

    Args:
        value: None, bool, int, float, str, or a torch dtype, CPU device or memory format, or lists, tuples,
            slices and dicts of these with string keys. Subclasses are refused, because they would come back
            as something else.
        node: Gives the index of a graph node, None for everything else.

    Raises:
        Undescribable: A value of another type.
    """
    index = node(value)
    kind = type(value)
    if index is not None:
        return {"node": index}
    if value is None or kind in (bool, int, str):
        return value  # type: ignore[no-any-return]
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if kind in (list, immutable_list):
        return [encode(each, node) for each in value]
    if kind in (tuple, torch.Size):
        return {"tuple": [encode(each, node) for each in value]}
    if kind is slice:
        return {"slice": [encode(each, node) for each in (value.start, value.stop, value.step)]}
    if kind in (dict, immutable_dict):
        return {"dict": [[_key(key), encode(each, node)] for key, each in value.items()]}
    return _encode_torch(value)


def _encode_torch(value: Any) -> Json:
    if value is Ellipsis:
        return {"ellipsis": None}
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.memory_format):
        return {"memory_format": _MEMORY_FORMAT_NAMES[value]}
    if isinstance(value, torch.device) and value.type == "cpu":
        return {"device": "cpu"}
    raise Undescribable(f"a value of type {type(value).__name__}")


def _key(key: Any) -> str:
    if type(key) is not str:
        raise Undescribable(f"a dict with a key of type {type(key).__name__}")
    return key


def decode(value: Json, nodes: Sequence[Any] = ()) -> Any:
    """Read what `encode` wrote.

    Args:
        value: The JSON value.
        nodes: What ``{"node": i}`` stands for.

    Raises:
        ValueError: The value is none of the forms above.
    """
    if isinstance(value, list):
        return [decode(each, nodes) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("a value with more than one meaning")
    ((kind, content),) = value.items()
    if kind in ("tuple", "slice", "dict") and isinstance(content, list):
        return _decode_sequence(kind, content, nodes)
    if kind == "node" and type(content) is int and 0 <= content < len(nodes):
        return nodes[content]
    if kind == "ellipsis" and content is None:
        return Ellipsis
    if kind == "device" and content == "cpu":
        return torch.device("cpu")
    tables: dict[str, dict[str, Any]] = {"dtype": DTYPES, "memory_format": _MEMORY_FORMATS, "float": _FLOATS}
    if kind in tables and isinstance(content, str) and content in tables[kind]:
        return tables[kind][content]
    raise ValueError(f"a value of the unknown kind {kind[:40]!r}")


def _decode_sequence(kind: str, content: list[Json], nodes: Sequence[Any]) -> Any:
    if kind == "tuple":
        return tuple(decode(each, nodes) for each in content)
    if kind == "slice":
        if len(content) != 3:
            raise ValueError("a slice without its three parts")
        return slice(*(decode(each, nodes) for each in content))
    pairs: dict[str, Any] = {}
    for pair in content:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError("a dict that is not a list of pairs")
        pairs[pair[0]] = decode(pair[1], nodes)
    return pairs
