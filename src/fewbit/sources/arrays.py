"""Arrays from .npy, .npz and .safetensors files; the first axis counts the samples.

One array is the model's first argument; several are arguments by name. Floating values become float32 and
integers int64 (token ids), which is what models take; booleans stay. Python objects inside .npy files are
never unpickled.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from fewbit.errors import FewbitError
from fewbit.sources.batches import Batch, Batches, spread
from fewbit.wording import counted

SUFFIXES = (".npy", ".npz", ".safetensors")
_DAMAGED = (OSError, ValueError, EOFError, KeyError, SafetensorError, zipfile.BadZipFile, zlib.error)


def load_arrays(path: Path, *, batch_size: int, limit: int | None) -> Batches:
    """Batches of the samples in an array file.

    Returns:
        Tensors [N, ...] where the file holds one array, dictionaries of them where it holds several.

    Raises:
        FewbitError: The file is damaged, empty, holds Python objects or text, or its arrays count different
            numbers of samples.
    """
    arrays = {name: _plain(tensor) for name, tensor in _read(path).items()}
    count = _samples(path, arrays)
    chosen = spread(count, limit)
    if len(chosen) < count:
        arrays = {name: tensor[chosen] for name, tensor in arrays.items()}

    def make(start: int, stop: int) -> Batch:
        parts = {name: tensor[start:stop] for name, tensor in arrays.items()}
        return next(iter(parts.values())) if len(parts) == 1 else parts

    # the slices are views, so keeping them costs nothing
    return Batches(len(chosen), batch_size, make, describe=f"{counted(len(chosen), 'sample')} of {path.name}")


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        if path.suffix.lower() == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {"array": loaded}
    except _DAMAGED as error:
        told = str(error) or type(error).__name__
        reason = "it holds Python objects" if "allow_pickle" in told else told.splitlines()[0]
        raise FewbitError(f"{path} cannot be read: {reason}") from error
    return {name: _tensor(path, name, array) for name, array in arrays.items()}


def _tensor(path: Path, name: str, array: np.ndarray) -> torch.Tensor:
    if array.dtype.kind == "f":
        return torch.from_numpy(np.asarray(array, dtype=np.float32, order="C"))
    if array.dtype.kind in "iu":
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise FewbitError(f"{path}: array {name!r} holds integers beyond int64")
        return torch.from_numpy(np.asarray(array, dtype=np.int64, order="C"))
    if array.dtype.kind == "b":
        return torch.from_numpy(np.asarray(array, order="C"))
    raise FewbitError(f"{path}: array {name!r} holds {array.dtype} values; a model takes numbers")


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Float32, int64 or bool."""
    if tensor.is_floating_point():
        return tensor.float()
    return tensor if tensor.dtype in (torch.bool, torch.int64) else tensor.to(torch.int64)


def _samples(path: Path, arrays: dict[str, torch.Tensor]) -> int:
    if not arrays:
        raise FewbitError(f"{path} holds no arrays")
    for name, tensor in arrays.items():
        if tensor.ndim == 0 or tensor.numel() == 0:
            raise FewbitError(f"{path}: array {name!r} of shape {tuple(tensor.shape)} holds no samples")
    counts = {name: len(tensor) for name, tensor in arrays.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise FewbitError(f"{path}: the arrays count different numbers of samples ({told})")
    return next(iter(counts.values()))
