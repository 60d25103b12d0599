"""A file or folder of data from the command line, made into batches that a model can be called with.

==========================  ==========================================================
``folder/`` or ``.zip``     pictures, JPEG and PNG (:mod:`fewbit.sources.images`), or a folder of text files
``.npy .npz .safetensors``  arrays, first axis the samples (:mod:`fewbit.sources.arrays`)
``.txt .md``                text, cut into windows of tokens (:mod:`fewbit.sources.text`)
==========================  ==========================================================
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from fewbit.errors import FewbitError
from fewbit.sources import arrays, images, text
from fewbit.sources.batches import Batches
from fewbit.sources.preparation import ImageOptions
from fewbit.sources.text import TextOptions


def load_data(
    path: str | Path,
    model: nn.Module | None = None,
    *,
    batch_size: int = 16,
    limit: int | None = None,
    tokenizer_dir: Path | None = None,
    image: ImageOptions | None = None,
    text_options: TextOptions | None = None,
) -> Batches:
    """Batches from a file or folder; its kind decides how it is read.

    Args:
        path: The file or folder.
        model: The model the data is for, which may know how its pictures are prepared and how long its texts
            may be.
        batch_size: Samples a batch.
        limit: At most this many samples, evenly spaced over all there are.
        tokenizer_dir: A Hugging Face folder with the tokenizer for text.
        image: How pictures are prepared.
        text_options: How text is cut.

    Returns:
        A re-iterable of batches with a length: float32 [N, 3, H, W] for pictures, dictionaries of int64 [N,
        T] for text, and for arrays tensors [N, ...] or dictionaries of them.

    Raises:
        FewbitError: The path does not exist, is of no known kind, or cannot be read; the message names the
            file.
        MissingExtraError: Pillow (pictures) or transformers (text) is not installed.
    """
    path = Path(path)
    if batch_size < 1 or (limit is not None and limit < 1):
        raise FewbitError(f"batch size and limit are at least 1, not {batch_size} and {limit}")
    if not path.exists():
        raise FewbitError(f"{path} does not exist; data is {_KINDS}")
    kind = kind_of(path)
    if kind == "pictures":
        image = image or ImageOptions()
        return images.load_images(path, model, batch_size=batch_size, limit=limit, options=image)
    if kind == "arrays":
        return arrays.load_arrays(path, batch_size=batch_size, limit=limit)
    if kind == "text":
        return text.load_text(
            path,
            model,
            batch_size=batch_size,
            limit=limit,
            tokenizer_dir=tokenizer_dir,
            options=text_options or TextOptions(),
        )
    raise FewbitError(f"{path} is of no known kind; data is {_KINDS}")


def kind_of(path: Path) -> str | None:
    """``"pictures"``, ``"text"`` or ``"arrays"``, as a path looks; None where it looks like none of them."""
    suffix = path.suffix.lower()
    if suffix in text.SUFFIXES or (path.is_dir() and images.none_in(path) and bool(text.files(path))):
        return "text"
    if path.is_dir() or suffix == ".zip":
        return "pictures"
    return "arrays" if suffix in arrays.SUFFIXES else None


_KINDS = "a folder or .zip of pictures, a .txt file or a folder of them, or a .npy, .npz or .safetensors file of arrays"
