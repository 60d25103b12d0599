"""``fewbit.quantize("folder", …, output="out")``: a Hugging Face folder from Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewbit.atomic import check_apart
from fewbit.calibrate.collect import Progress
from fewbit.errors import FewbitError
from fewbit.models import layout
from fewbit.nn.prepare import split_name
from fewbit.sequential.automatic import resolve
from fewbit.sequential.folder import FolderJob, quantize_folder
from fewbit.sequential.skeleton import skeleton
from fewbit.sequential.solve import Settings
from fewbit.sequential.windows import Window, windows
from fewbit.sources.data import load_data
from fewbit.sources.huggingface import tokenizer_folder
from fewbit.sources.text import TextOptions, text_batches

#: Calibration windows of a text, and their tokens.
WINDOWS, LENGTH = 64, 512


def is_folder(model: object) -> bool:
    """Whether a model is given as a Hugging Face folder."""
    return isinstance(model, str | Path) and (Path(model) / "config.json").is_file()


def quantize_checkpoint(
    folder: str | Path,
    settings: Settings,
    data: Iterable[Any] | None,
    output: str | Path | None,
    progress: Progress | None = None,
) -> Path:
    """Stream a folder, see :mod:`fewbit.sequential.folder`.

    Args:
        folder: With ``config.json`` and ``.safetensors`` weights.
        settings: How layers are quantized; steps of an algorithm that change the float model as a whole need it in
            memory.
        data: Texts, the path of a text file or of a folder of them (64 windows of 512 tokens are taken), or batches of
            token ids.
        output: The folder to write; an interrupted run goes on.
        progress: Called with (stage, steps done, steps in all).

    Returns:
        ``output``.

    Raises:
        FewbitError: There is no output, or the folder, the recipe or the data cannot be used.
    """
    if output is None:
        raise FewbitError(f"{folder} is quantized to a folder: name it with output=")
    check_apart(output, folder)
    source = Path(folder)
    model = skeleton(source)
    algorithm = resolve(settings.algorithm, settings.recipe, bool(layout(model).blocks), data is not None)
    if split_name(algorithm)[0]:
        raise FewbitError(
            f"{algorithm} changes the float model as a whole; load the model and pass it instead of {folder}"
        )
    settings = replace(settings, algorithm=algorithm)
    job = FolderJob(source, Path(output), settings, None if data is None else calibration_windows(source, model, data))
    return quantize_folder(job, progress).output


def calibration_windows(folder: Path, model: Any, data: Iterable[Any]) -> list[Window]:
    """Windows of texts, of a file, or of batches of token ids.

    Raises:
        FewbitError: The data or the tokenizer cannot be read.
    """
    tokenizer, options = tokenizer_folder(folder), TextOptions(length=LENGTH)
    name = getattr(model, "main_input_name", "input_ids")
    if isinstance(data, str | Path):
        found = load_data(data, model, batch_size=1, limit=WINDOWS, tokenizer_dir=tokenizer, text_options=options)
        return windows(found, name)
    items = list(data)
    if items and all(isinstance(item, str) for item in items):
        if tokenizer is None:
            raise FewbitError(f"{folder} holds no tokenizer; pass token ids instead of texts")
        return windows(text_batches(items, tokenizer, model, limit=WINDOWS, options=options), name)
    return windows(items, name)
