"""Quantizing a checkpoint tensor by tensor, where no data is needed; the next tensor is read meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from fewbit.errors import FewbitError
from fewbit.nn.weight import PackedWeight
from fewbit.recipe import LayerPlan
from fewbit.sequential.packing import matrix_of, pack, swap
from fewbit.sequential.solve import Settings
from fewbit.sequential.streamed import Streamed


def quantize_part(store: Streamed, part: str, plans: Sequence[LayerPlan], settings: Settings) -> None:
    """Quantize the layers of a part and fill in what stays float; the part is then ready to be written.

    Args:
        store: The model between its two ends.
        part: A block, or what is outside.
        plans: All plans of the model.
        settings: How; the algorithm must not need data.
    """
    chosen: dict[str, list[LayerPlan]] = {}
    for plan in plans:
        if plan.scheme is not None:
            chosen.setdefault(store.canonical[f"{plan.name}.weight"], []).append(plan)
    for name, tensor in _read_ahead(store, store.names(part)):
        tied = chosen.get(store.canonical.get(name, name), [])
        if not tied:
            store.check_finite(name, tensor)
            store.put(name, tensor)
            continue
        try:
            packed = PackedWeight(pack(matrix_of(store.model, tied[0], tensor), tied[0], settings))
        except FewbitError:
            store.check_finite(name, tensor)  # says which file holds it; packing looked at each value anyway
            raise
        del tensor
        for plan in tied:
            swap(store.model, plan, packed)


def _read_ahead(store: Streamed, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """What ``store.read`` gives, biases before weights, one tensor ahead of its use."""
    ordered = sorted(names, key=lambda name: name.endswith("weight"))
    source = iter(store.read(ordered))
    with ThreadPoolExecutor(1) as pool:
        ahead: Future[Any] = pool.submit(next, source, None)
        while True:
            item = ahead.result()
            if item is None:
                return
            ahead = pool.submit(next, source, None)
            yield item
