"""Options that several commands share, declared once."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from fewbit.cli.session import refuse_options
from fewbit.errors import FewbitError

if TYPE_CHECKING:
    from fewbit.sources import Batches, ImageOptions, LoadedModel, TextOptions

_PICTURES = "Pictures"

Source: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A Hugging Face folder, package.module:factory (PyTorch), an .onnx file, or a folder saved by fewbit.",
        show_default=False,
    ),
]
Calibrator: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--calibrator",
        help="How activation ranges are chosen: minmax, percentile, mse, entropy, outlier, …; best measures.",
        show_default="the recipe's",
    ),
]
AsJson: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, all else on stderr.")
]
DataPath: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE|FOLDER",
        help="Pictures (a folder or .zip), text (.txt or a folder), or arrays (.npy, .npz, .safetensors).",
        show_default=False,
    ),
]
Samples: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--samples",
        "--windows",
        min=1,
        help="Use at most this many samples (windows of text), evenly spaced.",
        show_default="all; 64 windows to calibrate a language model",
    ),
]
#: Samples a batch where the user says nothing.
BATCH = 16
BatchSize: TypeAlias = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Samples a batch.", show_default=str(BATCH))
]
BiasCorrection: TypeAlias = Annotated[
    str,
    typer.Option(
        "--bias-correction",
        metavar="empirical|analytic|none",
        help="Correct biases for the weights' rounding: by the data, or by batch norms.",
    ),
]
NoBiasCorrection: TypeAlias = Annotated[bool, typer.Option("--no-bias-correction", help="The same as none.")]
ImageSize: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        min=1,
        help="Pixels of the central square.",
        show_default="the model's",
        rich_help_panel=_PICTURES,
    ),
]
Mean: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--mean",
        metavar="R,G,B",
        help="Subtracted from values between 0 and 1; one number makes the pictures grey.",
        show_default="the model's",
        rich_help_panel=_PICTURES,
    ),
]
Std: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--std",
        metavar="R,G,B",
        help="Divided by after that.",
        show_default="the model's",
        rich_help_panel=_PICTURES,
    ),
]
Tokens: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        "--length",
        min=1,
        help="Tokens a window, for text.",
        show_default="128; 512 to calibrate a language model",
        rich_help_panel="Text",
    ),
]
Tokenizer: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", metavar="FOLDER", help="Where the tokenizer is.", show_default="SOURCE", rich_help_panel="Text"
    ),
]


_FOLDERS = "Hugging Face folders"
Memory: TypeAlias = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="For hidden states and statistics, beside one block; more goes to disk. 4GiB, 800MB, …",
        rich_help_panel=_FOLDERS,
    ),
]
Dtype: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="float32|bfloat16|float16",
        help="The type of what stays float.",
        show_default="the checkpoint's",
        rich_help_panel=_FOLDERS,
    ),
]
Restart: TypeAlias = Annotated[
    bool,
    typer.Option("--restart", help="Throw an interrupted run away instead of going on.", rich_help_panel=_FOLDERS),
]


@dataclass(frozen=True)
class Streaming:
    """What the command line says about going from folder to folder."""

    memory: str = "8GiB"
    dtype: str | None = None
    restart: bool = False

    def given(self) -> dict[str, bool]:
        """Which of its options the user gave."""
        before = Streaming()
        return {f"--{field.name}": getattr(self, field.name) != getattr(before, field.name) for field in fields(self)}


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str) -> int:
    """``"8GiB"``, ``"500 MB"``, ``"1.5gb"`` as bytes.

    Raises:
        FewbitError: It is no positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise FewbitError(f"--memory takes a size such as 8GiB or 500MB, not {text!r}")
    return int(float(match[1]) * unit)


#: What options do something for, by the kind of data; without data, none does.
_OPTIONS_OF = {
    "pictures": ("samples", "batch_size", "image_size", "mean", "std"),
    "text": ("samples", "batch_size", "tokens", "tokenizer"),
    "arrays": ("samples", "batch_size"),
}
_TWO_NAMES = {"samples": "--samples/--windows", "tokens": "--tokens/--length"}


@dataclass(frozen=True)
class DataOptions:
    """What the command line says about data; None where it says nothing."""

    path: Path | None
    samples: int | None
    batch_size: int | None
    image_size: int | None
    mean: str | None
    std: str | None
    tokens: int | None
    tokenizer: Path | None = None

    def check(self) -> None:
        """Tell what is wrong before a model is loaded for it.

        Raises:
            FewbitError: The path does not exist, a mean or deviation is not a list of numbers, or an option does
                nothing for this kind of data, or without data.
        """
        from fewbit.sources import kind_of

        self.image()
        if self.path is not None and not self.path.exists():
            raise FewbitError(f"the data {self.path} does not exist")
        kind = kind_of(self.path) if self.path is not None else None
        if self.path is not None and kind is None:
            return  # what reads it tells what it might be
        used = ("path", *(_OPTIONS_OF[kind] if kind is not None else ()))
        others = {
            _TWO_NAMES.get(name, f"--{name.replace('_', '-')}"): getattr(self, name) is not None
            for name in (field.name for field in fields(self))
            if name not in used
        }
        refuse_options(others, "without --data" if self.path is None else f"for {kind}, which {self.path} holds")

    def of_language(self) -> DataOptions:
        """What is left open as calibrating a language model wants it: 64 windows of 512 tokens."""
        from fewbit.sequential.entry import LENGTH, WINDOWS

        return replace(self, samples=self.samples or WINDOWS, tokens=self.tokens or LENGTH)

    def load(self, source: LoadedModel) -> Batches:
        """The batches, prepared for a model.

        Raises:
            FewbitError: There is no path, or it cannot be read.
        """
        from fewbit.sources import load_data

        if self.path is None:
            raise FewbitError("this needs data; name a file or folder with --data")
        return load_data(
            self.path,
            source.model,
            batch_size=self.batch_size or BATCH,
            limit=self.samples,
            tokenizer_dir=self.tokenizer or source.tokenizer_dir,
            image=self.image(),
            text_options=self.text(),
        )

    def text(self) -> TextOptions:
        """How texts are cut."""
        from fewbit.sources import TextOptions

        return TextOptions() if self.tokens is None else TextOptions(length=self.tokens)

    def image(self) -> ImageOptions:
        """How pictures are prepared.

        Raises:
            FewbitError: A mean or deviation is not a list of numbers.
        """
        from fewbit.sources import ImageOptions

        mean, std = numbers(self.mean, "--mean"), numbers(self.std, "--std")
        return ImageOptions(size=self.image_size, mean=mean, std=std)


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """``"0.485,0.456,0.406"`` as numbers.

    Raises:
        FewbitError: A part is no finite number.
    """
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or any(value - value != 0 for value in values):
        raise FewbitError(f"{option} takes numbers with commas between, such as 0.485,0.456,0.406, not {text!r}")
    return values
