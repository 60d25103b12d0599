"""How one picture becomes the tensor an image classifier wants.

The usual preparation: decode, convert to RGB, scale the short side to ``resize`` pixels, cut the central
square of ``size`` pixels, divide by 255, subtract ``mean``, divide by ``std``. The numbers come, in this
order, from the options, from the model (``pretrained_cfg`` or ``default_cfg`` as timm's models carry them,
else a Hugging Face folder's ``preprocessor_config.json``), and from ImageNet's custom.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.sources.huggingface import read_json

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_LARGEST = 8192  # pixels of a side; beyond it a batch does not fit any memory
_CROP = 0.875  # 224 of 256

T = TypeVar("T")


@dataclass(frozen=True)
class ImageOptions:
    """How pictures are prepared; what is None is taken from the model, else from ImageNet's custom.

    Attributes:
        size: Pixels of the square that is cut out.
        resize: Pixels the short side is scaled to before; by default ``size`` / 0.875.
        mean: Per channel, for values from 0 to 1. One number alone makes the pictures grey.
        std: Per channel, like ``mean``.
        interpolation: ``bicubic`` or ``bilinear``.
    """

    size: int | None = None
    resize: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None


@dataclass(frozen=True)
class Preparation:
    """Image options with every number filled in."""

    size: int
    resize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def resolve(options: ImageOptions, model: nn.Module | None = None) -> Preparation:
    """Fill in what the options leave open.

    Raises:
        FewbitError: A size that is not positive, means and deviations of different lengths, an unknown
            interpolation.
    """
    known = _of_model(model) if model is not None else ImageOptions()
    size = _first(options.size, known.size, 224)
    # the model's own scale belongs to the model's own size
    known_resize = known.resize if options.size in (None, known.size) else None
    resize = _first(options.resize, known_resize, round(size / _CROP))
    mean = _first(options.mean, known.mean, _IMAGENET_MEAN)
    std = _first(options.std, known.std, _IMAGENET_STD)
    interpolation = _first(options.interpolation, known.interpolation, "bicubic")
    if max(size, resize) > _LARGEST:
        raise FewbitError(f"pictures of {max(size, resize)} pixels are beyond what fits; the largest are {_LARGEST}")
    if size < 1 or resize < size:
        raise FewbitError(f"pictures cannot be scaled to {resize} pixels and then cut to {size}")
    if len(mean) != len(std) or len(mean) not in (1, 3) or not all(0 < s < math.inf for s in std):
        raise FewbitError(f"mean {mean} and std {std}: give one number or three of each, std above 0")
    if interpolation not in ("bicubic", "bilinear"):
        raise FewbitError(f"interpolation {interpolation!r} is neither bicubic nor bilinear")
    return Preparation(size, resize, mean, std, interpolation)


def prepare(data: bytes, how: Preparation, name: str) -> torch.Tensor:
    """Decode one picture and prepare it.

    Args:
        data: The bytes of a JPEG or PNG file.
        how: The numbers.
        name: The picture's name, for the message.

    Returns:
        Float32 [channels, size, size].

    Raises:
        FewbitError: The bytes are no picture, or a damaged one.
    """
    from PIL import Image

    picture = _decode(data, "RGB" if len(how.mean) == 3 else "L", name)
    width, height = _scaled(picture.size, how.resize)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling[how.interpolation.upper()])
    left, top = (width - how.size) // 2, (height - how.size) // 2
    picture = picture.crop((left, top, left + how.size, top + how.size))
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    values = values.view(how.size, how.size, len(how.mean)).permute(2, 0, 1).double()
    mean = torch.tensor(how.mean, dtype=torch.float64).view(-1, 1, 1)
    std = torch.tensor(how.std, dtype=torch.float64).view(-1, 1, 1)
    return ((values - mean * 255) / (std * 255)).float().contiguous()


def _decode(data: bytes, mode: str, name: str) -> Any:
    """The picture in Pillow's `mode`, every pixel read."""
    from PIL import Image

    damaged = (OSError, SyntaxError, ValueError, EOFError, zlib.error, Image.DecompressionBombError)
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as opened:
            return opened.convert(mode)
    except damaged as error:
        reason = "it is no JPEG or PNG" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise FewbitError(f"{name} cannot be decoded: {reason}") from error


def _first(*values: T | None) -> T:
    """The first value that is given."""
    return next(value for value in values if value is not None)


def _scaled(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Width and height with the short side at `short` pixels."""
    width, height = size
    if width <= height:
        return short, max(short, round(height * short / width))
    return max(short, round(width * short / height)), short


def _of_model(model: nn.Module) -> ImageOptions:
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = getattr(model, attribute, None)
        if config is not None:
            return _from_timm(config if isinstance(config, Mapping) else vars(config))
    folder = getattr(model, "name_or_path", None)
    if isinstance(folder, str) and folder and (Path(folder) / "preprocessor_config.json").is_file():
        return _from_huggingface(read_json(Path(folder) / "preprocessor_config.json"))
    return ImageOptions()


def _from_timm(config: Mapping[str, Any]) -> ImageOptions:
    shape = config.get("input_size")
    size = int(shape[-1]) if shape else None
    crop = config.get("crop_pct") or _CROP
    interpolation = config.get("interpolation")
    return ImageOptions(
        size=size,
        resize=int(size / crop) if size else None,
        mean=_numbers(config.get("mean")),
        std=_numbers(config.get("std")),
        interpolation=interpolation if interpolation in ("bicubic", "bilinear") else None,
    )


def _from_huggingface(config: Mapping[str, Any]) -> ImageOptions:
    """Fields of ``preprocessor_config.json``; a size is a number, {height, width} or {shortest_edge}."""
    scaled = _edge(config.get("size"))
    cropped = _edge(config.get("crop_size")) if config.get("do_center_crop", True) else None
    size = cropped or scaled
    return ImageOptions(
        size=size,
        resize=max(scaled, size) if scaled and size else None,
        mean=_numbers(config.get("image_mean")),
        std=_numbers(config.get("image_std")),
        interpolation={2: "bilinear", 3: "bicubic"}.get(config.get("resample", 3)),
    )


def _edge(value: object) -> int | None:
    if isinstance(value, Mapping):
        value = value.get("shortest_edge", value.get("height"))
    return value if isinstance(value, int) else None


def _numbers(value: object) -> tuple[float, ...] | None:
    return tuple(float(v) for v in value) if isinstance(value, (list, tuple)) else None
