"""The model of a Hugging Face folder without its weights: every parameter on the meta device."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewbit.errors import FewbitError, require, told
from fewbit.formats.architecture.huggingface import without_weights
from fewbit.sources.huggingface import model_class, read_json

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def skeleton(folder: Path) -> nn.Module:
    """Build the model that a folder's ``config.json`` describes.

    Raises:
        FewbitError: The configuration is missing, damaged, of a quantized model, or none that transformers knows.
        MissingExtraError: transformers is not installed.
    """
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise FewbitError(f"{folder} holds a model that is quantized already; quantize the float model")
    transformers = require("transformers", "llm")
    found = model_class(transformers, config, folder)
    try:
        settings = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with without_weights():
            make = found.from_config if found.__name__.startswith("AutoModel") else found
            model: nn.Module = make(copy.deepcopy(settings))
    except Exception as error:  # a damaged configuration raises anything
        raise FewbitError(f"{folder / 'config.json'} does not describe a model: {told(error)}") from error
    _take_generation(model, folder, transformers)
    return model.eval()


def float_dtype(folder: Path, wanted: str | None) -> torch.dtype:
    """The type of what stays float: as asked for, else as the configuration says, else float32.

    Raises:
        FewbitError: An unknown name.
    """
    if wanted is not None and wanted not in _DTYPES:
        raise FewbitError(f"--dtype takes {', '.join(_DTYPES)}, not {wanted!r}")
    config = read_json(folder / "config.json")
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    named = wanted or config.get("dtype") or config.get("torch_dtype") or (text or {}).get("dtype")
    return _DTYPES.get(str(named), torch.float32)


def _take_generation(model: Any, folder: Path, transformers: Any) -> None:
    if (folder / "generation_config.json").is_file() and hasattr(model, "generation_config"):
        settings = transformers.GenerationConfig.from_dict(read_json(folder / "generation_config.json"))
        model.generation_config = settings
