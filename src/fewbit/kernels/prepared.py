"""Runtime forms of packed weights, made once and kept as long as the packed bytes live.

Checkpoints and module state hold one plain layout (:mod:`fewbit.numbers.packing`). Kernels want their own; the operator gets the plain
tensor, so that export and compilation see ordinary tensors, and finds the prepared form here by the tensor's storage.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

T = TypeVar("T")

# A weak reference keeps the storage's address from being used again, so an address names one storage only.
_entries: dict[int, tuple[StorageWeakRef, dict[Hashable, Any]]] = {}


def prepared(tensor: Tensor, key: Hashable, build: Callable[[], T]) -> T:
    """What ``build()`` made for this storage, version of its content and key."""
    storage = tensor.untyped_storage()
    address = storage._cdata
    if address not in _entries:
        _forget_dead()
        _entries[address] = (StorageWeakRef(storage), {})
    forms = _entries[address][1]
    full_key = (key, tensor.storage_offset(), _version(tensor))
    if full_key not in forms:
        for stale in [k for k in forms if k[0] == key]:  # type: ignore[index]
            del forms[stale]
        forms[full_key] = build()
    form: T = forms[full_key]
    return form


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _forget_dead() -> None:
    for address in [a for a, (reference, _) in _entries.items() if reference.expired()]:
        del _entries[address]
