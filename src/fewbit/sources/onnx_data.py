"""Data for an ONNX model: what its input says about size, layout and batch decides how pictures are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fewbit.errors import FewbitError
from fewbit.sources.batches import Batch, Batches
from fewbit.sources.data import load_data
from fewbit.sources.preparation import ImageOptions
from fewbit.sources.text import TextOptions

_BATCH = 16


class OnnxBatches:
    """Batches as a model takes them: of its batch size, channels first or last, words by the names of its inputs.

    Attributes:
        samples: How many samples there are.
        describe: What the data is.
    """

    def __init__(self, batches: Batches, inputs: list[Any]) -> None:
        self.batches, self.inputs = batches, inputs
        self.samples, self.describe = batches.samples, batches.describe

    def __len__(self) -> int:
        """How many batches."""
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        """One batch."""
        return self._fitted(self.batches[index])

    def __iter__(self) -> Iterator[Batch]:
        """All batches, in order; may be called again."""
        return (self[index] for index in range(len(self)))

    def _fitted(self, batch: Batch) -> Batch:
        if isinstance(batch, dict):
            names = [value.name for value in self.inputs]
            if "token_type_ids" in names and "token_type_ids" not in batch:
                batch = {**batch, "token_type_ids": torch.zeros_like(next(iter(batch.values())))}
            return batch
        last = _channels_last(self.inputs[0])
        return batch.movedim(1, -1).contiguous() if last and batch.dim() == 4 and batch.shape[1] in (1, 3) else batch


def load_onnx_data(
    path: Path, model: Any, source: Path, *, batch_size: int | None, limit: int | None, image: ImageOptions, length: int
) -> OnnxBatches:
    """Batches from a file or folder for an ONNX model.

    Args:
        path: The data.
        model: The ``onnx_ir.Model``.
        source: Its file; a tokenizer is looked for beside it.
        batch_size: Samples a batch; None for what the model fixes, else 16.
        limit: At most this many samples.
        image: What the user says about pictures.
        length: Tokens a window of text.

    Raises:
        FewbitError: The data cannot be read, the model fixes another batch size, or its
            pictures have no size and none is given.
    """
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    first = inputs[0]
    dims = [] if first.shape is None else [d if isinstance(d, int) and d > 0 else None for d in first.shape]
    fixed = dims[0] if dims else None
    if batch_size is not None and fixed is not None and batch_size != fixed:
        raise FewbitError(f"the input {first.name!r} takes batches of {fixed} and no others; leave --batch-size out")
    pictures = path.is_dir() or path.suffix.lower() == ".zip"
    if pictures:
        image = _sized(image, dims, first)
    tokenizer = source.parent if (source.parent / "tokenizer.json").is_file() else None
    batches = load_data(
        path,
        batch_size=fixed or batch_size or _BATCH,
        limit=limit,
        tokenizer_dir=tokenizer,
        image=image,
        text_options=TextOptions(length=length),
    )
    return OnnxBatches(batches, inputs)


def _sized(image: ImageOptions, dims: list[int | None], value: Any) -> ImageOptions:
    """The options with the size and the channels that the model's input has."""
    if len(dims) != 4:
        raise FewbitError(f"the input {value.name!r} of shape {dims} takes no pictures; give arrays (.npy, .npz)")
    height, width = dims[1:3] if _channels_last(value) else dims[2:4]
    if image.size is not None:
        return image
    if height is None or width is None:
        raise FewbitError(f"the input {value.name!r} has no fixed size; say --image-size, or give arrays (.npy, .npz)")
    if height != width:
        raise FewbitError(f"the input {value.name!r} is {height}×{width}, no square; give prepared arrays (.npy, .npz)")
    return replace(image, size=height)


def _channels_last(value: Any) -> bool:
    shape = value.shape
    return shape is not None and len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)
