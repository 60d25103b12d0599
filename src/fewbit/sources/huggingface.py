"""Models from Hugging Face folders: ``config.json`` beside ``.safetensors`` weights, read offline.

The class is the one that ``config.json`` names under ``architectures`` (``AutoModel`` where it names none
that transformers has). Weights are read as float32, so that what is quantized, and what it is compared with,
is exactly the checkpoint. Code that lies in the folder is never run, and pickled weights
(``pytorch_model.bin``) are refused.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.errors import FewbitError, require, told

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.txt",
    "vocab.json",
)


def load(path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Read the model of a folder.

    Args:
        path: The folder.

    Returns:
        The model, float32, and notes for the user: one when weights that the model has are not in the
        checkpoint.

    Raises:
        FewbitError: The configuration or the weights are missing, damaged, or of a kind transformers cannot
            load.
        MissingExtraError: transformers is not installed.
    """
    config = read_json(path / "config.json")
    if not any(path.glob("*.safetensors")):
        raise FewbitError(f"{path} holds no .safetensors weights, and pickled ones (.bin) are not read")
    transformers = require("transformers", extra="llm")
    found = model_class(transformers, config, path)
    try:
        with _quiet():
            model, info = found.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # a damaged folder raises anything from KeyError to SafetensorError
        raise FewbitError(f"{path} cannot be loaded: {told(error)}") from error
    if not isinstance(model, nn.Module):
        raise FewbitError(f"{path} holds no PyTorch model")
    return model, _notes(info)


def tokenizer_folder(path: Path) -> Path | None:
    """The folder itself when it holds a tokenizer, else None."""
    return path if any((path / name).is_file() for name in _TOKENIZER_FILES) else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FewbitError: The file cannot be read or holds something else; the message names it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FewbitError(f"{path} is no readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise FewbitError(f"{path} holds no JSON object")
    return data


def model_class(transformers: Any, config: dict[str, Any], folder: Path | None = None) -> Any:
    """The class that the configuration names; only model classes of transformers itself.

    Where it names none: that of causal language models if the weights in ``folder`` are of one, else AutoModel.
    """
    named = config.get("architectures")
    names = named if isinstance(named, list) else []
    for name in names:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    causal = transformers.AutoModelForCausalLM
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if folder is not None and config.get("model_type") in known and _is_causal(folder):
        return causal
    return transformers.AutoModel


def _is_causal(folder: Path) -> bool:
    """Whether weights have an output layer, or the names that a model with one (tied to the embedding) gives them."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as opened:
                names = list(opened.keys())
        except (OSError, SafetensorError):
            continue  # told with its name when it is read
        if any(name == "lm_head.weight" or name.startswith(("model.layers.", "transformer.h.")) for name in names):
            return True
    return False


def _notes(info: dict[str, Any]) -> tuple[str, ...]:
    missing = sorted(info.get("missing_keys", ()))
    if not missing:
        return ()
    return (f"{len(missing)} weights are not in the checkpoint and are random, {missing[0]} first",)


class _quiet:
    """Keep transformers' own bar and warnings off the terminal while a folder is read."""

    def __enter__(self) -> None:
        from transformers.utils import logging as hf_logging

        self._bar = bool(hf_logging.is_progress_bar_enabled())
        self._level = hf_logging.get_verbosity()
        hf_logging.disable_progress_bar()
        hf_logging.set_verbosity(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as hf_logging

        hf_logging.set_verbosity(self._level)
        if self._bar:
            hf_logging.enable_progress_bar()
