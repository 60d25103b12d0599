"""The processes of one run: who am I, and what the others know.

Only plain tensors and JSON travel between processes; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fewbit.errors import FewbitError

_DTYPES = {str(t).removeprefix("torch."): t for t in (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
)}  # fmt: skip


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; one alone unless ``torch.distributed`` was set up.

    Attributes:
        rank: Its number.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Ranks:
        """The processes of an initialised process group, else this one alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this process writes and tells."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()

    def tell(self, value: Any, source: int = 0) -> Any:
        """A JSON value that one process knows, given to all."""
        if self.size == 1:
            return value
        data = self._bytes(json.dumps(value).encode() if self.rank == source else b"", source)
        return json.loads(data)

    def share(self, tensors: dict[str, Tensor], source: int) -> dict[str, Tensor]:
        """Tensors that one process has, given to all."""
        if self.size == 1:
            return tensors
        outline = self.tell(_outline(tensors), source)
        shared = {}
        for name, (dtype, shape) in outline.items():
            flat = _flat(tensors[name]) if self.rank == source else _room(dtype, shape)
            if flat.numel():
                dist.broadcast(flat, source)
            shared[name] = tensors[name] if self.rank == source else flat.view(_DTYPES[dtype]).reshape(shape)
        return shared

    def send(self, tensors: dict[str, Tensor], target: int) -> None:
        """Send tensors to one process, which calls :meth:`receive`."""
        head = torch.frombuffer(bytearray(json.dumps(_outline(tensors)).encode()), dtype=torch.uint8)
        dist.send(torch.tensor([head.numel()]), target)
        dist.send(head, target)
        for tensor in tensors.values():
            flat = _flat(tensor)
            if flat.numel():
                dist.send(flat, target)

    def receive(self, source: int) -> dict[str, Tensor]:
        """The tensors that another process sends."""
        length = torch.zeros(1, dtype=torch.int64)
        dist.recv(length, source)
        head = torch.empty(int(length), dtype=torch.uint8)
        dist.recv(head, source)
        received = {}
        for name, (dtype, shape) in json.loads(bytes(head.numpy())).items():
            flat = _room(dtype, shape)
            if flat.numel():
                dist.recv(flat, source)
            received[name] = flat.view(_DTYPES[dtype]).reshape(shape)
        return received

    def agree(self, error: Exception | None) -> None:
        """Every process tells whether it failed; if one did, all raise.

        Raises:
            FewbitError: A process failed; this one's own error comes first.
        """
        if self.size > 1:
            flags = torch.zeros(self.size, dtype=torch.int64)
            flags[self.rank] = int(error is not None)
            dist.all_reduce(flags)
            if error is None and bool(flags.any()):
                raise FewbitError(f"process {int(flags.nonzero()[0])} of {self.size} failed; its own message says why")
        if error is not None:
            raise error

    def _bytes(self, data: bytes, source: int) -> bytes:
        length = torch.tensor([len(data)])
        dist.broadcast(length, source)
        flat = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == source:
            flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        dist.broadcast(flat, source)
        return bytes(flat.numpy())


@contextmanager
def torchrun() -> Iterator[Ranks]:
    """The processes that ``torchrun`` started, connected while the context lasts; this one alone without torchrun."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2 or "RANK" not in os.environ or dist.is_initialized():
        yield Ranks.current()
        return
    dist.init_process_group("gloo")
    try:
        yield Ranks.current()
    finally:
        dist.destroy_process_group()


def _outline(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _room(dtype: str, shape: list[int]) -> Tensor:
    return torch.empty(torch.Size(shape).numel() * _DTYPES[dtype].itemsize, dtype=torch.uint8)
