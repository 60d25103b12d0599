"""Runtime forms of packed weights, made once and kept as long as the packed bytes live.

Checkpoints and module state hold one plain layout (:mod:`fewbit.numbers.packing`). Kernels want their own; the operator
gets the plain tensor, so that export and compilation see ordinary tensors, and finds the prepared form here by the
tensor's storage.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

T = TypeVar("T")

Form = tuple[tuple[Any, ...], tuple[Tensor | None, ...], Any]  # state of the content, what else it is made of, the form

# A weak reference keeps the storage's address from being used again, so an address names one storage only.
_entries: dict[int, tuple[StorageWeakRef, dict[Hashable, Form]]] = {}
_lock = threading.Lock()
# What still lives when the interpreter ends would be told to the user as a leak of the compiled module.
atexit.register(_entries.clear)


def prepared(codes: Tensor, others: tuple[Tensor | None, ...], key: Hashable, build: Callable[[], T]) -> T:
    """What ``build()`` made for these tensors; made anew when one of them was replaced or written to.

    Args:
        codes: The form lives as long as this tensor's storage.
        others: Scales and zero points; kept alive by the form, so that their addresses stay theirs.
        key: Which form.
        build: Makes it.
    """
    storage = codes.untyped_storage()
    address = storage._cdata
    with _lock:  # windows of calibration data run on threads
        if address not in _entries:
            _forget_dead()
            _entries[address] = (StorageWeakRef(storage), {})  # type: ignore[no-untyped-call]
        forms = _entries[address][1]
    state = tuple(part for tensor in (codes, *others) for part in _state(tensor))
    found = forms.get(key)
    if found is None or found[0] != state:
        found = forms[key] = (state, others, build())
    form: T = found[2]
    return form


def _state(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return (0,)
    version = -1 if tensor.is_inference() else tensor._version
    view = tensor.storage_offset(), tensor.shape, tensor.stride()
    return int(tensor.untyped_storage()._cdata), *view, version


def _forget_dead() -> None:
    dead = [a for a, (reference, _) in _entries.items() if reference.expired()]  # type: ignore[no-untyped-call]
    for address in dead:
        del _entries[address]
