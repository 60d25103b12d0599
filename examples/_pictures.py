"""What the training examples share: labelled pictures in memory, augmentation, two small networks."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

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


def as_input(pixels: Tensor) -> Tensor:
    """Float32 in channels-last order, roughly in [-2, 2]."""
    return ((pixels.float() - 120.0) / 64.0).contiguous(memory_format=torch.channels_last)


def load_pictures(path: Path, size: int, classes: tuple[str, ...] | None = None) -> Pictures:
    """Pictures of a folder or .zip laid out as ``CLASS/picture.jpg``; the classes are the names of the folders."""
    files = dict(_files(path))
    found = tuple(sorted({name.split("/")[-2] for name in files}))
    classes = classes or found
    if unknown := set(found) - set(classes):
        raise SystemExit(f"{path} has classes that the training pictures lack: {', '.join(sorted(unknown))}")
    names = sorted(files)
    pixels = torch.empty(len(names), 3, size, size, dtype=torch.uint8)
    for index, name in enumerate(names):
        with Image.open(io.BytesIO(files[name]())) as picture:
            picture = picture.convert("RGB")
            if picture.size != (size, size):
                picture = picture.resize((size, size), Image.Resampling.BILINEAR)
            pixels[index] = (
                torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
                .reshape(size, size, 3)
                .permute(2, 0, 1)
            )
    labels = torch.tensor([classes.index(name.split("/")[-2]) for name in names])
    return Pictures(pixels, labels, classes)


def _files(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    if path.is_dir():
        for file in path.rglob("*"):
            if file.suffix.lower() in SUFFIXES:
                yield file.relative_to(path.parent).as_posix(), file.read_bytes
        return
    archive = zipfile.ZipFile(path)
    for name in archive.namelist():
        if name.lower().endswith(SUFFIXES) and "/" in name:
            yield name, lambda name=name: archive.read(name)


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


def accuracy(model: nn.Module, pictures: Pictures, batch: int = 250) -> float:
    """Share of pictures whose top class is right, in evaluation mode."""
    was = model.training
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in pictures.batches(batch))
    model.train(was)
    return right / len(pictures.labels)
