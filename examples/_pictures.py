"""What the training examples share: labelled pictures in memory, augmentation, two small networks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from _journal import fingerprint
from torch import Tensor, nn

from fewbit.errors import FewbitError, require

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Pictures:
    """uint8 ``[N, 3, size, size]``, labels ``[N]``, and the names of the classes."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches in order, as the networks take them."""
        for pixels, labels in zip(self.pixels.split(size), self.labels.split(size)):
            yield as_input(pixels), labels

    def fingerprint(self) -> str:
        """A short digest of all of it."""
        return fingerprint({"pixels": self.pixels, f"labels of {self.classes}": self.labels})


def as_input(pixels: Tensor) -> Tensor:
    """Float32 in channels-last order, roughly in [-2, 2]."""
    return ((pixels.float() - 120.0) / 64.0).contiguous(memory_format=torch.channels_last)


def load_pictures(path: Path, size: int, classes: tuple[str, ...] | None = None) -> Pictures:
    """Pictures of a folder or .zip laid out as ``CLASS/picture.jpg``; the classes are the names of the folders.

    Raises:
        FewbitError: There is nothing such, or a picture cannot be read.
    """
    files = _files(path)
    found = tuple(sorted({name.split("/")[-2] for name in files}))
    if not files:
        raise FewbitError(f"{path} holds no pictures laid out as CLASS/picture.jpg (or .jpeg, .png)")
    if classes is None and len(found) < 2:
        raise FewbitError(f"{path} holds one class only, {found[0]!r}: lay pictures out as CLASS/picture.jpg")
    classes = classes or found
    if unknown := set(found) - set(classes):
        raise FewbitError(f"{path} has classes that the training pictures lack: {', '.join(sorted(unknown))}")
    names = sorted(files)
    pixels = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    for index, name in enumerate(names):
        try:
            pixels[index] = _pixels(files[name](), size)
        except Exception as error:  # damaged pictures and archives fail in any way
            raise FewbitError(f"{path}: {name} cannot be read as a picture: mend it or take it out") from error
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    return Pictures(pixels, labels, classes)


def _pixels(data: bytes, size: int) -> Tensor:
    image = require("PIL.Image", "images")
    with image.open(io.BytesIO(data)) as picture:
        picture = picture.convert("RGB")
        if picture.size != (size, size):
            picture = picture.resize((size, size), image.Resampling.BILINEAR)
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.reshape(size, size, 3).permute(2, 0, 1)


def _files(path: Path) -> dict[str, Callable[[], bytes]]:
    """How to read each picture, by ``CLASS/picture``; hidden files and pictures beside the classes are left out."""
    if path.is_dir():
        inside = {file.relative_to(path).as_posix(): file.read_bytes for file in path.rglob("*")}
    else:
        try:
            archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise FewbitError(f"{path} cannot be read as a .zip file of pictures, and is no folder: {error}") from error
        inside = {name: partial(archive.read, name) for name in archive.namelist()}
    wanted = (name for name in inside if name.lower().endswith(SUFFIXES) and "/" in name)
    return {name: inside[name] for name in wanted if not name.split("/")[-1].startswith(".")}


def augment(pixels: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """A random crop of the picture with a border of an eighth, mirrored half of the time, at ``size`` pixels."""
    count, _, height, width = pixels.shape
    border = height // 8
    padded = F.pad(pixels, [border] * 4)
    top, left = torch.randint(0, 2 * border + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    crop = as_input(padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2))
    if size != height:
        crop = F.interpolate(crop, size=size, mode="bilinear", antialias=True)
    return crop.contiguous(memory_format=torch.channels_last)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv 1512.03385)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet20(classes: int) -> nn.Sequential:
    """ResNet-20 for small pictures: 16, 32 and 64 channels, three blocks each; 0.27 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        for place in range(3):
            layers.append(Block(channels, out, stride if place == 0 else 1))
            channels = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


class Inverted(nn.Module):
    """An inverted residual: expand, depthwise, project (arXiv 1801.04381)."""

    def __init__(self, channels: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = channels * expand
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.same = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


def mobilenetv2_small(classes: int) -> nn.Sequential:
    """A MobileNetV2 of 8 blocks for small pictures; 0.18 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    channels = 16
    for out, stride, repeat in ((16, 1, 1), (24, 2, 2), (40, 2, 3), (64, 1, 2)):
        for place in range(repeat):
            layers.append(Inverted(channels, out, stride if place == 0 else 1, 4))
            channels = out
    layers += [nn.Conv2d(channels, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, classes))


NETWORKS: dict[str, Callable[[int], nn.Sequential]] = {"resnet20": resnet20, "mobilenetv2": mobilenetv2_small}


def accuracy(model: Callable[[Tensor], Tensor], pictures: Pictures, batch: int = 250) -> float:
    """Share of pictures whose top class is right; a module is asked in evaluation mode."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    was = module.training
    module.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in pictures.batches(batch))
    module.train(was)
    return right / len(pictures.labels)
