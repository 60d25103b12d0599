"""What is known of an input that layers of a block share: its Gram matrix, and ranges where they are static.

Sums of several leaves of the tree are joined in place, and may wait on disk for their neighbours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewbit.calibrate.gram import Gram, Statistics
from fewbit.calibrate.input_mean import InputMean
from fewbit.calibrate.statistic import Statistic
from fewbit.nn.intercept import Call
from fewbit.sequential.spare import Spare

_AT_ONCE = 2**22  # values that are read to be added to others
_WAITING = 2**23  # values of inputs that wait to be multiplied together


@dataclass(frozen=True)
class Wanted:
    """What has to be summed up: the Gram matrix, one of held-back windows, the mean (without a Gram matrix)."""

    gram: bool
    held_back: bool
    mean: bool


@dataclass
class InputSums:
    """Sums over the input of a group of layers.

    Attributes:
        name: The first of the layers.
        gram: None until the first input, and where it is not wanted.
        held_back: The same of windows that algorithms are judged on.
        ranges: A range statistic for each layer with static activations.
        mean: For bias correction, where there is no Gram matrix.
        spare: Where matrices come from and go to; None: from and to the system.
    """

    name: str
    wanted: Wanted
    gram: Gram | None = None
    held_back: Gram | None = None
    ranges: dict[str, Statistic] = field(default_factory=dict)
    mean: InputMean | None = None
    spare: Spare | None = None
    _parked: Path | None = None
    _rows: dict[str, list[Tensor]] = field(default_factory=dict)

    def update(self, call: Call, held_back: bool) -> None:
        """Take in one input; rows for the Gram matrices wait until they are many, or for :meth:`flush`."""
        if call.x.numel() == 0 or call.kind == "embedding":
            return
        for statistic in self.ranges.values():
            statistic.update(call.x)
        if self.wanted.gram and call.kind == "linear":
            attribute = "held_back" if held_back and self.wanted.held_back else "gram"
            waiting = self._rows.setdefault(attribute, [])
            waiting.append(call.x.reshape(-1, call.x.shape[-1]))
            if sum(rows.numel() for rows in waiting) >= _WAITING:
                self._multiply(attribute)
        elif self.wanted.mean:
            if self.mean is None:
                self.mean = InputMean(call.geometry, self.name)
            self.mean.geometry = call.geometry
            self.mean.update(call.x)

    def flush(self) -> None:
        """Take in what waits; before the sums are looked at."""
        for attribute in list(self._rows):
            self._multiply(attribute)

    def _multiply(self, attribute: str) -> None:
        waiting = self._rows.pop(attribute)
        gram = getattr(self, attribute)
        width = waiting[0].shape[-1]
        if gram is None:
            dtype = Gram.products_dtype(width)
            memory = None if self.spare is None else self.spare.take((width, width), dtype)
            gram = Gram(width, self.name, memory)
            setattr(self, attribute, gram)
        if len(waiting) == 1:
            gram.update(waiting[0])
        elif self.spare is None or waiting[0].device.type != "cpu":
            gram.update(torch.cat(waiting))
        else:
            rows = self.spare.take((sum(map(len, waiting)), width), waiting[0].dtype)
            gram.update(torch.cat(waiting, out=rows))
            self.spare.give(rows)

    def join(self, other: InputSums) -> InputSums:
        """Add what comes later; both are used up."""
        other.unpark()
        if self._parked is not None:
            self._unpark(other.tensors())
        else:
            self.gram = _joined(self.gram, other.gram, self.spare)
            self.held_back = _joined(self.held_back, other.held_back, self.spare)
        for key, statistic in other.ranges.items():
            own = self.ranges.get(key)
            self.ranges[key] = statistic if own is None else own.merge(statistic)
        if other.mean is not None:
            self.mean = other.mean if self.mean is None else self.mean.merge(other.mean)
        return self

    def leave(self) -> None:
        """Nobody looks at the sums any more."""
        for gram in (self.gram, self.held_back):
            if gram is not None and self.spare is not None:
                self.spare.give(gram.state_dict()["products"])
        self.gram = self.held_back = None

    def statistics(self) -> Statistics | None:
        """What an algorithm sees; None when no data came."""
        self.unpark()
        if self.gram is None or self.gram.count == 0:
            return None
        return Statistics(self.gram, self.held_back)

    def mean_input(self) -> Tensor | None:
        """The mean input, float64 ``[groups, K]``, or None."""
        if self.gram is not None:
            return self.gram.mean.unsqueeze(0)
        return None if self.mean is None else self.mean.mean()

    @property
    def nbytes(self) -> int:
        """Bytes in memory of the Gram matrices."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The Gram matrices as plain tensors."""
        grams = {"gram": self.gram, "held_back": self.held_back}
        return {f"{k}.{n}": t for k, gram in grams.items() if gram is not None for n, t in gram.state_dict().items()}

    def take(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`."""
        for key in ("gram", "held_back"):
            state = {name.removeprefix(f"{key}."): t for name, t in tensors.items() if name.startswith(f"{key}.")}
            setattr(self, key, Gram.from_state(state, self.name) if state else None)

    def park(self, path: Path) -> None:
        """Put the Gram matrices on disk until they are needed."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        if tensors:
            _write(tensors, path)
            self.gram = self.held_back = None
            self._parked = path

    def unpark(self) -> None:
        """Bring them back."""
        if self._parked is not None:
            self._unpark({})

    def _unpark(self, others: dict[str, Tensor]) -> None:
        """Bring them back, added to others."""
        assert self._parked is not None
        self.take(_read(self._parked, others))
        self._parked.unlink()
        self._parked = None


def _joined(left: Gram | None, right: Gram | None, spare: Spare | None) -> Gram | None:
    if left is None or right is None:
        return right if left is None else left
    state, other = left.state_dict(), right.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.add_(other[name].to(tensor.device))
    if spare is not None:
        spare.give(other["products"])
    return Gram.from_state(state, left.name)


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    """Each tensor after a line with its name, dtype and shape; no copy of a tensor is made."""
    with path.open("wb") as file:
        for name, tensor in tensors.items():
            values = tensor.numpy()
            file.write(json.dumps([name, values.dtype.str, list(values.shape)]).encode() + b"\n")
            file.flush()
            file.write(values.reshape(-1).view(np.uint8).data)  # tofile does not say why it fails


def _read(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What :func:`_write` wrote, added in place to tensors of the same names, a piece at a time."""
    with path.open("rb") as file:
        while line := file.readline():
            name, dtype, shape = json.loads(line)
            count, own = int(np.prod(shape)), tensors.get(name)
            if own is None:
                tensors[name] = torch.from_numpy(np.fromfile(file, dtype, count)).reshape(shape)
                continue
            flat = own.view(-1)
            for start in range(0, count, _AT_ONCE):
                piece = torch.from_numpy(np.fromfile(file, dtype, min(_AT_ONCE, count - start)))
                flat[start : start + len(piece)] += piece.to(flat.device)
    return tensors
