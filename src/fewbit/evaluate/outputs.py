"""What a model returned, as named floating tensors, whatever container it came in.

Models return a tensor, a tuple, a dictionary, a dataclass, or Hugging Face's ``ModelOutput`` (an ordered
dictionary). All of them flatten here to ``{"logits": tensor, "hidden_states.0": tensor, ...}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch

#: The name of an output that is a bare tensor.
BARE = "output"


def floating_outputs(output: object) -> dict[str, torch.Tensor]:
    """Every floating-point tensor inside `output`, by dotted name.

    Args:
        output: A tensor, or mappings, sequences and dataclasses of tensors, nested at will. Other values
            (integers, caches, ``None``) are passed over.

    Returns:
        Tensors of the shapes and dtypes they came in, in the order they were found. A bare tensor is
        named ``"output"``.
    """
    return dict(_walk(output, ""))


def is_classification(name: str, value: torch.Tensor) -> bool:
    """Whether the last dimension of an output holds the scores of classes.

    True for a bare ``[N, C]`` tensor with two classes or more and for anything named ``logits`` (language
    models: ``[N, T, C]``). An ``[N, C]`` tensor under another name is an embedding, not a score.
    """
    if value.ndim < 2 or value.shape[-1] < 2:
        return False
    return name.rsplit(".", 1)[-1] == "logits" or (name == BARE and value.ndim == 2)


def _walk(value: object, name: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield name or BARE, value
        return
    for key, item in _items(value):
        yield from _walk(item, f"{name}.{key}" if name else key)


def _items(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value)
    elif isinstance(value, (list, tuple)):
        yield from ((str(index), item) for index, item in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
