"""A SOURCE from the command line, made into a model.

A SOURCE is one of three things:

* ``package.module:factory``: anything importable (the working directory counts) that is an ``nn.Module`` or,
  called without arguments, returns one;
* a Hugging Face folder: ``config.json`` beside ``.safetensors`` weights (:mod:`fewbit.sources.huggingface`);
* a folder that ``fewbit.save`` wrote.

Nothing is fetched from the network and nothing is unpickled.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from torch import nn

from fewbit import formats
from fewbit.errors import FewbitError, told
from fewbit.sources import huggingface

Kind = Literal["huggingface", "factory", "fewbit"]

#: What a SOURCE may be, for messages.
SOURCES = "a Hugging Face folder, package.module:factory, or a folder saved by fewbit"

#: The file by which a folder that ``fewbit.save`` wrote is known.
FEWBIT_MANIFEST = "fewbit.json"

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class LoadedModel:
    """A model and where it came from.

    Attributes:
        model: The model, in evaluation mode.
        name: A short name for tables: the folder's or the factory's.
        kind: What the SOURCE was.
        factory: ``package.module:factory`` when the SOURCE was one, so that a saved model can name it.
        tokenizer_dir: The folder that holds the model's tokenizer, when there is one.
        notes: What the user should know about the loading, one sentence each.
    """

    model: nn.Module
    name: str
    kind: Kind
    factory: str | None = None
    tokenizer_dir: Path | None = None
    notes: tuple[str, ...] = ()


def load_model(source: str | Path) -> LoadedModel:
    """Make a model of a SOURCE.

    Args:
        source: A path, or ``package.module:factory``.

    Raises:
        FewbitError: The SOURCE is none of the kinds above, or cannot be loaded; the message says which and
            why.
        MissingExtraError: A Hugging Face folder, and transformers is not installed.
    """
    path = Path(source)
    if path.is_dir():
        return _load_folder(path)
    if _FACTORY.fullmatch(str(source)):
        return _load_factory(str(source))
    raise FewbitError(_refusal(path))


def _load_folder(path: Path) -> LoadedModel:
    name = path.resolve().name
    if (path / FEWBIT_MANIFEST).is_file():
        model = formats.load(path)
        return LoadedModel(model.eval(), name, "fewbit", tokenizer_dir=huggingface.tokenizer_folder(path))
    if (path / "config.json").is_file():
        model, notes = huggingface.load(path)
        return LoadedModel(
            model.eval(), name, "huggingface", tokenizer_dir=huggingface.tokenizer_folder(path), notes=notes
        )
    raise FewbitError(
        f"{path} holds no config.json (a Hugging Face folder) and no {FEWBIT_MANIFEST} (one saved by fewbit)"
    )


def _load_factory(source: str) -> LoadedModel:
    module_name, _, attribute = source.partition(":")
    with _working_directory_importable():
        target = _attribute(module_name, attribute)
        model = target if isinstance(target, nn.Module) else _call(target, source)
    return LoadedModel(model.eval(), attribute, "factory", factory=source)


def _attribute(module_name: str, attribute: str) -> object:
    """Import the module and walk to the attribute (which may have dots, as in ``Net.tiny``)."""
    try:
        target: object = importlib.import_module(module_name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (module_name == missing or module_name.startswith(f"{missing}.")):
            raise FewbitError(f"{module_name}:{attribute}: there is no module {missing!r}") from error
        raise FewbitError(f"importing {module_name} raised {_told(error)}") from error
    for part in attribute.split("."):
        if not hasattr(target, part):
            close = get_close_matches(part, [n for n in dir(target) if not n.startswith("_")], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise FewbitError(f"{module_name} has no attribute {attribute!r}{hint}")
        target = getattr(target, part)
    return target


def _call(target: object, source: str) -> nn.Module:
    if not callable(target):
        raise FewbitError(f"{source} is of type {type(target).__name__}, no torch.nn.Module and no function")
    try:
        model = target()
    except Exception as error:
        raise FewbitError(f"calling {source}() raised {_told(error)}") from error
    if not isinstance(model, nn.Module):
        raise FewbitError(f"{source}() returned a {type(model).__name__}, not a torch.nn.Module")
    return model


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """The ``fewbit`` command does not put the working directory on ``sys.path`` as ``python -m`` does."""
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added and here in sys.path:
            sys.path.remove(here)


def _refusal(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist; a SOURCE is {SOURCES}"
    kind = {".onnx": "ONNX models", ".gguf": "GGUF models"}.get(path.suffix.lower())
    if kind is not None:
        return f"{path}: {kind} cannot be read; this version reads {SOURCES}"
    if path.suffix.lower() == ".safetensors":
        return f"{path} holds weights without their model; name the folder, with the config.json in it"
    if path.suffix.lower() in {".pt", ".pth", ".bin", ".pkl", ".ckpt"}:
        return f"{path} holds pickled weights; name a function that returns the model, as module:function"
    return f"{path} is a file of no known kind; a SOURCE is {SOURCES}"


def _told(error: Exception) -> str:
    """The error's type and first line, for the middle of a sentence."""
    said = told(error)
    return said if said.startswith(type(error).__name__) else f"{type(error).__name__}: {said}"
