"""The two ends of a streamed run: float tensors come from a checkpoint, finished parts go to files.

The model is a skeleton. A part (a block, or what stands outside of the blocks) gets its weights, is quantized, is
written to a file of its own and becomes empty again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import atomic
from fewbit.errors import FewbitError
from fewbit.formats import _tensors
from fewbit.nn import layer_config, quantized_layers
from fewbit.numbers.affine import not_finite
from fewbit.sequential.checkpoint import Checkpoint
from fewbit.sequential.journal import Journal
from fewbit.sequential.names import Origin
from fewbit.sequential.ranks import Ranks

#: The part that holds everything outside of the blocks.
OUTSIDE = "outside of the blocks"


@dataclass(frozen=True)
class Part:
    """A part that is quantized: its tensors, the layers' forms, which of them share a weight, and notes."""

    name: str
    stored: dict[str, Tensor]
    layers: dict[str, dict[str, Any]]
    tied: dict[str, str]
    notes: tuple[str, ...]


class Streamed:
    """A skeleton between a checkpoint and the files of a run.

    Args:
        model: The skeleton.
        checkpoint: Its tensors.
        origins: Which of them make which parameters.
        blocks: The names of its blocks.
        journal: Of the run.
        folder: Where finished parts are written.
        dtype: The type in which what stays float is written.
        ranks: The processes; the first one writes what all have.

    Raises:
        FewbitError: The checkpoint lacks a tensor of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        origins: Mapping[str, Origin],
        blocks: Sequence[str],
        journal: Journal,
        folder: Path,
        dtype: torch.dtype,
        ranks: Ranks,
    ) -> None:
        self.model, self.checkpoint, self.blocks = model, checkpoint, tuple(blocks)
        self.journal, self.folder, self.dtype, self.ranks = journal, folder, dtype, ranks
        self.parts = (*self.blocks, OUTSIDE)
        self.origins = origins
        self.canonical = _canonical(model)
        self._alike: dict[str, list[str]] = {}
        for name, first in self.canonical.items():
            self._alike.setdefault(first, []).append(name)
        self._float = _tables(model)
        self._sound: set[str] = set()  # parts whose files were written or read through by this process
        self._check_complete()

    def part_of(self, name: str) -> str:
        """The part to which a tensor or a layer belongs."""
        return next((block for block in self.blocks if name.startswith(f"{block}.")), OUTSIDE)

    def names(self, part: str) -> list[str]:
        """The parameters and stored buffers of a part that the checkpoint holds, each once."""
        own = [name for name in self.origins if self.part_of(name) == part]
        return [name for name in own if self.canonical.get(name, name) == name or self.canonical[name] not in own]

    def load(self, name: str, compute: str) -> None:
        """Give a block its float weights, for passes that compute in that type."""
        self.fill(self.names(name), compute)

    def fill(self, names: Iterable[str], compute: str = "float32") -> None:
        """Read some parameters, in float32; matrices in bfloat16 stay so where passes compute in it."""
        for name, tensor in self.read(names):
            self.check_finite(name, tensor)
            exact = compute == "bfloat16" and tensor.dtype == torch.bfloat16 and tensor.dim() == 2
            self.put(name, tensor.to(torch.float32) if tensor.is_floating_point() and not exact else tensor)

    def read(self, names: Iterable[str]) -> Iterable[tuple[str, Tensor]]:
        """Parameters and their values in the checkpoint's type, one after another.

        Raises:
            FewbitError: A tensor cannot be read, or has another shape than the model's.
        """
        done: set[str] = set()
        for name in names:
            if name in done:
                continue
            made = self.origins[name].make(self.model, self.checkpoint.read)
            for each, tensor in made.items():
                done.add(each)
                yield each, self._checked(each, tensor, self.origins[name])

    def check_finite(self, name: str, tensor: Tensor) -> None:
        """Refuse a parameter as :meth:`read` gave it that holds NaN or infinity, before the data is blamed for it.

        Raises:
            FewbitError: It does; the message names the tensor of the checkpoint, and its file.
        """
        owner, key = self._place(name)
        kind = not_finite(tensor) if key in owner._parameters else None
        if kind is None:
            return
        keys = [key for key, _ in self.origins[name].keys]  # of which one may be to blame
        bad = next((key for key in keys if len(keys) == 1 or not_finite(self.checkpoint.read(key))), keys[0])
        raise FewbitError(
            f"the tensor {bad} in {self.checkpoint.entries[bad].file} holds {kind}; fetch the file again, or mend the "
            "model before quantizing"
        )

    def put(self, name: str, tensor: Tensor) -> None:
        """Set a parameter or buffer, and those tied to it."""
        value: Tensor | None = None
        for each in self._alike.get(self.canonical.get(name, name), [name]):
            owner, key = self._place(each)
            if key in owner._parameters:
                value = nn.Parameter(tensor, requires_grad=False) if value is None else value
                owner._parameters[key] = value  # type: ignore[assignment]
            elif key in owner._buffers:
                owner._buffers[key] = tensor

    def unload(self, name: str) -> None:
        """Make a part empty and float again."""
        prefix = "" if name == OUTSIDE else f"{name}."
        for path, module, tables in self._float:
            if f"{path}.".startswith(prefix) if prefix else self.part_of(f"{path}.x") == OUTSIDE:
                own: Tables = (module._parameters, module._buffers, module._modules)
                for mine, old in zip(own, tables):
                    mine.clear()
                    mine.update(old)

    def finished(self, name: str) -> bool:
        """Whether the part is in the journal and its file is there."""
        record = self.journal.records.get(name)
        if record is None:
            return False
        path = self.folder / record["file"]
        whole = path.is_file() and path.stat().st_size == record["bytes"]
        if whole and name not in self._sound:
            whole = _tensors.sha256(path) == record["sha256"]
        if not whole:
            raise FewbitError(
                f"{path} is missing or damaged, which the interrupted run wrote; start anew with --restart"
            )
        self._sound.add(name)
        return True

    def release(self, name: str, notes: Sequence[str]) -> None:
        """Write a part, tell the journal, and make it empty again."""
        if self.ranks.first:
            self.write(name, notes)
        self.ranks.barrier()
        self.unload(name)
        if not self.ranks.first:
            self.journal.read()

    def write(self, part: str, notes: Sequence[str]) -> None:
        """Write a part and tell the journal."""
        self.save(self.collect(part, notes))

    def collect(self, part: str, notes: Sequence[str]) -> Part:
        """What there is to write of a part; the part may become empty before it is written."""
        layers = {name: layer for name, layer in quantized_layers(self.model).items() if self.part_of(name) == part}
        configs = {name: self._config(layer) for name, layer in layers.items()}
        return Part(part, self._stored(part, layers), configs, self._ties(layers), tuple(notes))

    def save(self, done: Part) -> None:
        """Write what :meth:`collect` gave and tell the journal."""
        number = self.parts.index(done.name) + 1
        file = f"weights-{number:05d}-of-{len(self.parts):05d}.safetensors"
        needs = sum(tensor.nbytes for tensor in done.stored.values())
        with atomic.new_file(self.folder / file, needs=needs) as path:
            size, digest = _tensors.write(path, _tensors.Stored(done.stored))
        self.journal.add(
            {
                "part": done.name,
                "file": file,
                "bytes": size,
                "sha256": digest,
                "layers": done.layers,
                "tied": done.tied,
                "stored": list(done.stored),
                "notes": list(done.notes),
            }
        )
        self._sound.add(done.name)

    def _stored(self, part: str, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
        inside = tuple(f"{name}." for name in layers)
        stored: dict[str, Tensor] = {}
        seen: dict[int, str] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if self.part_of(name) != part or seen.setdefault(id(tensor), name) != name:
                continue
            plain = tensor.detach()
            if plain.is_floating_point() and not name.startswith(inside):
                plain = plain.to(self.dtype)
            stored[name] = plain.cpu().contiguous()
        return stored

    def _config(self, layer: nn.Module) -> dict[str, Any]:
        config = layer_config(layer)
        config["weight"]["dtype"] = str(self.dtype).removeprefix("torch.")
        return config

    def _ties(self, layers: dict[str, nn.Module]) -> dict[str, str]:
        first: dict[int, str] = {}
        ties = {}
        for name, layer in layers.items():
            earlier = first.setdefault(id(layer.get_submodule("weight").packed), name)
            if earlier != name:
                ties[name] = earlier
        return ties

    def _place(self, name: str) -> tuple[nn.Module, str]:
        owner, _, key = name.rpartition(".")
        return self.model.get_submodule(owner), key

    def _checked(self, name: str, tensor: Tensor, origin: Origin) -> Tensor:
        owner, key = self._place(name)
        slot = owner._parameters.get(key, owner._buffers.get(key))
        if slot is not None and slot.shape != tensor.shape:
            raise FewbitError(
                f"{self.checkpoint.folder}: the tensor {origin.keys[0][0]} has the shape {tuple(tensor.shape)}, where "
                f"the model of its config.json wants {tuple(slot.shape)}"
            )
        return tensor

    def _check_complete(self) -> None:
        there = {self.canonical.get(name, name) for name in self.origins}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if self.canonical[name] not in there and tensor.is_meta:
                raise FewbitError(f"{self.checkpoint.folder} lacks the tensor {name}; fetch the folder again")


def _canonical(model: nn.Module) -> dict[str, str]:
    """For each name in the state dict the first name of the same tensor."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(t), name) for name, t in model.state_dict(keep_vars=True).items()}


Tables = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _tables(model: nn.Module) -> list[tuple[str, nn.Module, Tables]]:
    return [
        (path, module, (dict(module._parameters), dict(module._buffers), dict(module._modules)))
        for path, module in model.named_modules()
    ]
