"""fewbit's own format: a folder that brings a quantized model back as it was, bit for bit.

``fewbit.json`` says what the model is (its architecture, every quantized layer's config, the recipe it came
from); ``model.safetensors``, or the shards ``weights-NNNNN-of-NNNNN.safetensors`` of a streamed checkpoint,
holds its tensors: integer codes, scales, zero points, and what stayed float. The first carries the others'
lengths and SHA-256 and a digest of itself, so that any damage is found before a tensor is used. Nothing in
either is ever run as code or unpickled. Saving is atomic and deterministic: the same model gives the same
bytes.

The digests find accidents, not forgery: whoever writes the folder chooses what the model computes, but not
what happens on this machine (see `architecture.allowed`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import fewbit.nn as quantized
from fewbit import atomic
from fewbit.errors import FewbitError, MissingExtraError
from fewbit.formats import _manifest, _tensors, architecture
from fewbit.formats.architecture.description import Description, members_of
from fewbit.formats.architecture.values import Json
from fewbit.nn.swap import in_training

_OWN = re.compile(r"fewbit\.json|model\.safetensors|weights-\d{5}-of-\d{5}\.safetensors")
# Files of a Hugging Face folder that go along with what is made of it.
COMPANIONS = frozenset(
    [
        *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
        *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "chat_template.json"),
    ]
)
_MEMBERS: dict[str, type | tuple[type, ...]] = {
    "format": str,
    "format_version": int,
    "fewbit_version": str,
    "source": (str, type(None)),
    "weights": (dict, list),
    "quantization": (dict, type(None)),
    "architecture": dict,
    "aliases": dict,
    "orders": dict,
}


def save(model: nn.Module, path: str | os.PathLike[str], *, source: str | None = None, overwrite: bool = False) -> Path:
    """Save a model as a folder that `load` brings back.

    Args:
        model: The model, usually from ``fewbit.quantize``. It is saved as it is in evaluation mode.
        path: The folder to appear, whole or not at all.
        source: Where the float model came from, kept for the reader's information. The configuration and tokenizer
            of a Hugging Face folder go along.
        overwrite: Whether an earlier output of fewbit at ``path`` is replaced. Anything else there is never
            touched.

    Returns:
        ``path``.

    Raises:
        FewbitError: Something is at ``path``, or a tensor or layer cannot be saved, or the folder cannot be
            written.

    Warns:
        UserWarning: The architecture cannot be saved, so that `load` will need the float model.
    """
    check_target(Path(path), overwrite)
    if names := in_training(model):
        raise FewbitError(
            f"{names[0]} is in training: convert the model first; the state of training is its state_dict"
        )
    description = architecture.describe(model)
    architecture.warn_if_unknown(description)
    stored = _tensors.collect(model, description.constants)
    info = quantized.info(model)
    with atomic.new_folder(path, overwrite=overwrite) as folder:
        size, digest = _tensors.write(folder / _tensors.NAME, stored)
        weights: dict[str, Json] = {"file": _tensors.NAME, "bytes": size, "sha256": digest}
        write_manifest(folder, description, weights, info, source, stored.aliases, stored.orders)
        if source is not None and (Path(source) / "config.json").is_file():
            copy_companions(Path(source), folder)
    return Path(path)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the files of a Hugging Face folder that are no weights."""
    for name in sorted(COMPANIONS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_manifest(
    folder: Path,
    description: Description,
    weights: dict[str, Json] | list[Json],
    info: quantized.QuantizationInfo | None,
    source: str | None,
    aliases: Mapping[str, str],
    orders: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write ``fewbit.json`` beside the weights.

    Args:
        folder: That of the weights.
        description: The architecture.
        weights: ``{"file", "bytes", "sha256"}`` of the file of weights, or a list of such, one a shard.
        info: How the model was quantized.
        source: Where the float model came from.
        aliases: Further name of a tensor to the name under which it is stored.
        orders: Orders of dimensions of stored tensors that are not in C order.
    """
    sharded = isinstance(weights, list)
    content: dict[str, Json] = {
        "format": "fewbit",
        "format_version": _manifest.FORMAT_VERSION if sharded else 1,
        "fewbit_version": _version(),
        "source": source,
        "weights": weights,
        "quantization": None if info is None else json.loads(json.dumps(info.to_dict())),
        "architecture": description.to_json(),
        "aliases": dict(aliases),
        "orders": {name: list(order) for name, order in (orders or {}).items()},
    }
    (folder / _manifest.NAME).write_bytes(_manifest.to_bytes(content))


def load(path: str | os.PathLike[str], model: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load a model that `save` wrote, on the CPU and in evaluation mode.

    Args:
        path: The folder.
        model: The float model or a function that makes it, where the folder could not hold the architecture.
            The model's own weights are not used, and it stays as it is.

    Returns:
        The model: of its own class if that is one of transformers or of torch.nn or comes from ``model``,
        else a `torch.fx.GraphModule` with the same layers under the same names.

    Raises:
        FewbitError: The folder is not fewbit's, damaged, incomplete or from a newer version, or needs
            ``model``.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FewbitError(f"{folder} is not a folder written by fewbit.save")
    if not (folder / _manifest.NAME).is_file():
        raise FewbitError(f"{folder} is not a folder written by fewbit.save: it holds no {_manifest.NAME}")
    content = _manifest.read(folder / _manifest.NAME, _MEMBERS)
    files = _weight_files(folder, content["weights"])
    try:
        return _restore(folder, files, content, model)
    except FewbitError:
        raise
    except Exception as error:
        # The content passed its digest, so an honest fewbit did not write it; it can fail anywhere.
        raise FewbitError(f"{folder / _manifest.NAME} does not describe a model: {str(error)[:200]}") from error


def _restore(
    folder: Path, files: list[Path], content: dict[str, Any], model: nn.Module | Callable[[], nn.Module] | None
) -> nn.Module:
    try:
        description = Description.from_json(content["architecture"])
        skeleton = architecture.build(description, model)
    except MissingExtraError:
        raise
    except FewbitError as error:
        raise FewbitError(f"{folder / _manifest.NAME}: {error}") from error
    constants = {path for path, slot in description.tensors.items() if slot.kind == "constant"}
    state: dict[str, Tensor] = dict(skeleton.state_dict(keep_vars=True))
    slots = {**state, **{path: description.tensors[path].empty() for path in constants}}
    tables = _tensors.Stored({}, _aliases(content["aliases"]), _orders(content["orders"]))
    tensors = _tensors.read(files, tables, slots)
    skeleton.load_state_dict({name: tensors[name] for name in state}, assign=True)
    _put_constants(skeleton, {path: tensors[path] for path in constants})
    left = [name for name, tensor in (*skeleton.named_parameters(), *skeleton.named_buffers()) if tensor.is_meta]
    if left:
        raise FewbitError(f"{files[0]} does not fit its model: it lacks the tensor {left[0]}")
    if content["quantization"] is not None:
        quantized.attach_info(skeleton, quantized.QuantizationInfo.from_dict(content["quantization"]))
    return skeleton.eval()


def _put_constants(model: nn.Module, constants: dict[str, Tensor]) -> None:
    """Fill the buffers that no state dict holds; one that a model handed in does not have is left out."""
    places = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for path, tensor in constants.items():
        if path in places:
            owner, _, name = path.rpartition(".")
            model.get_submodule(owner)._buffers[name] = tensor.detach()


def check_target(path: Path, overwrite: bool) -> None:
    """Refuse a folder to write that holds anything else than an earlier output of fewbit.

    Raises:
        FewbitError: The message says what is there.
    """
    if not path.is_dir():
        if path.exists():
            raise FewbitError(f"{path} is a file: name a folder to save the model in")
        return
    names = {each.name for each in path.iterdir()}
    foreign = {name for name in names if not _OWN.fullmatch(name) and name not in COMPANIONS}
    if names and (_manifest.NAME not in names or foreign):
        raise FewbitError(f"{path} holds {min(foreign or names)}, which fewbit did not write: choose another folder")
    if names and not overwrite:
        raise FewbitError(
            f"{path} holds a saved model already: overwrite=True, --overwrite on the command line, replaces it"
        )


def _weight_files(folder: Path, weights: Any) -> list[Path]:
    """The files of weights, each checked against its length and digest.

    Raises:
        FewbitError: One is missing or damaged; the message names it.
    """
    manifest = folder / _manifest.NAME
    if not weights:
        raise FewbitError(f"{manifest} does not describe a model: it names no weights")
    files = []
    for each in weights if isinstance(weights, list) else [weights]:
        try:
            members_of(each, {"file": str, "bytes": int, "sha256": str})
        except ValueError as error:
            raise FewbitError(f"{manifest} does not describe a model: {error}") from error
        if not _OWN.fullmatch(each["file"]):
            raise FewbitError(f"{manifest} does not describe a model: it names the file {each['file'][:80]!r}")
        _check_weights(folder / each["file"], each, manifest)
        files.append(folder / each["file"])
    return files


def _check_weights(path: Path, weights: dict[str, Any], manifest: Path) -> None:
    try:
        size = path.stat().st_size
        if size != weights["bytes"]:
            raise FewbitError(f"{path} is damaged: it has {size} bytes instead of {weights['bytes']}")
        if _tensors.sha256(path) != weights["sha256"]:
            raise FewbitError(f"{path} is damaged: its content does not match the digest in {manifest.name}")
    except OSError as error:
        raise FewbitError(f"{path} cannot be read: {error.strerror or error}") from error


def _aliases(value: dict[str, Json]) -> dict[str, str]:
    aliases = {alias: name for alias, name in value.items() if isinstance(name, str)}
    if len(aliases) != len(value):
        raise ValueError("an alias that is not a name")
    return aliases


def _orders(value: dict[str, Json]) -> dict[str, list[int]]:
    orders = {name: [d for d in order if type(d) is int] for name, order in value.items() if isinstance(order, list)}
    if orders != value:
        raise ValueError("an order of dimensions that is not a list of numbers")
    return orders


def _version() -> str:
    try:
        return metadata.version("fewbit")
    except metadata.PackageNotFoundError:
        return "unknown"
