"""Calibration data as windows: one sequence each, without padding.

Forward passes go window by window, so that no result depends on which sequences shared a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import FewbitError

Window = dict[str, Any]

_SEQUENCES = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids", "decoder_input_ids")


def windows(batches: Iterable[Any], input_name: str = "input_ids") -> list[Window]:
    """Cut batches into windows.

    Args:
        batches: Tensors ``[N, …]`` or dicts of them, as models take them; a row of ``input_ids`` may also come alone
            as ``[T]``. An ``attention_mask`` that masks a row's ends shortens the window instead.
        input_name: The argument that a plain tensor is.

    Returns:
        For each row the arguments of the model, tensors of one row each.

    Raises:
        FewbitError: There is nothing, or a batch is neither tensor nor dict of tensors.
    """
    found = [window for number, batch in enumerate(batches, 1) for window in _rows(batch, input_name, number)]
    if not found:
        raise FewbitError("the calibration data is empty; pass at least one batch")
    return found


def _rows(batch: Any, input_name: str, number: int) -> Iterator[Window]:
    if isinstance(batch, list | tuple) and batch and all(isinstance(value, int) for value in batch):
        batch = torch.tensor(batch)
    if isinstance(batch, list | tuple) and batch and isinstance(batch[0], Tensor):
        batch = batch[0]  # a data loader's (inputs, labels)
    if isinstance(batch, Tensor):
        batch = {input_name: batch}
    if not isinstance(batch, Mapping) or not batch:
        raise FewbitError(f"calibration batch {number} is no tensor and no dict of tensors of token ids")
    arguments = {str(key): value for key, value in batch.items() if key != "labels"}
    tensors = {key: _with_rows(value) for key, value in arguments.items() if isinstance(value, Tensor)}
    if not tensors:
        raise FewbitError(f"calibration batch {number} holds no tensor")
    counts = {len(value) for value in tensors.values()}
    if len(counts) > 1:
        raise FewbitError(f"calibration batch {number}: its tensors count different numbers of rows")
    for row in range(counts.pop()):
        cut = {key: value[row : row + 1] for key, value in tensors.items()}
        yield _without_padding({**arguments, **cut})


def _with_rows(value: Tensor) -> Tensor:
    return value.unsqueeze(0) if value.dim() == 1 else value


def _without_padding(window: Window) -> Window:
    mask = window.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return window
    kept = mask[0].nonzero().flatten()
    if kept.numel() == 0:
        raise FewbitError("a calibration window is masked as a whole; leave it out")
    first, last = int(kept[0]), int(kept[-1])
    if kept.numel() != last - first + 1:
        return window  # holes: the model itself masks them
    names = [name for name in _SEQUENCES if isinstance(window.get(name), Tensor)]
    fits = [name for name in names if window[name].dim() >= 2 and window[name].shape[1] == mask.shape[1]]
    if not any(name in ("input_ids", "inputs_embeds") for name in fits):
        return window
    shortened = {name: window[name][:, first : last + 1] for name in fits}
    rest = {name: value for name, value in window.items() if name != "attention_mask"}
    return {**rest, **shortened}
