"""The last step of a streamed run: ``fewbit.json`` and the small files beside the finished parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.formats import architecture, native
from fewbit.nn import QuantizationInfo
from fewbit.nn.experts import split_experts
from fewbit.nn.swap import quantized_weight, restore_layer
from fewbit.recipe import LayerPlan
from fewbit.sequential.checkpoint import Checkpoint
from fewbit.sequential.names import origins, split_origins
from fewbit.sequential.skeleton import skeleton
from fewbit.sequential.solve import Settings
from fewbit.sequential.streamed import Streamed

if TYPE_CHECKING:
    from fewbit.sequential.folder import FolderResult


def assemble(
    source: Path, files: Path, store: Streamed, plans: Sequence[LayerPlan], settings: Settings, notes: Sequence[str]
) -> FolderResult:
    """Describe the model that the finished parts make up, and write it down.

    Args:
        source: The Hugging Face folder.
        files: The folder of the finished parts.
        store: With the journal.
        plans: Of all layers.
        settings: How they were quantized.
        notes: Of the whole run; the parts' own come behind.

    Raises:
        FewbitError: A part is missing.
    """
    from fewbit.sequential.folder import FolderResult

    records = []
    for part in store.parts:
        if not store.finished(part):
            raise FewbitError(f"the part {part} was not finished; run the same command again")
        records.append(store.journal.records[part])
    notes = [*notes, *(note for record in records for note in record["notes"])]
    model = skeleton(source)
    split_experts(model)
    model = _restored(model, records)
    info = QuantizationInfo(
        settings.recipe.to_dict(),
        settings.algorithm,
        list(notes),
        [],
        {plan.name: plan.reason for plan in plans if plan.scheme is None},
    )
    stored = {name for record in records for name in record["stored"]}
    if store.ranks.first:
        weights: list[Any] = [{key: record[key] for key in ("file", "bytes", "sha256")} for record in records]
        description = architecture.describe(model)
        native.write_manifest(files, description, weights, info, str(source), _aliases(model, stored))
        native.copy_companions(source, files)
    return FolderResult(files, as_stored(source), model, info)


def as_stored(source: Path) -> nn.Module:
    """The float model of a folder without values, each tensor in the type in which the checkpoint holds it.

    Raises:
        FewbitError: The folder cannot be read.
    """
    model, entries = skeleton(source), Checkpoint(source).entries
    found, _ = origins(model, entries)
    found = split_origins(model, found)
    split_experts(model)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in found and tensor.is_floating_point():
            tensor.data = tensor.data.to(entries[found[name].keys[0][0]].dtype)
    return model


def _restored(model: nn.Module, records: Sequence[dict[str, Any]]) -> nn.Module:
    """The skeleton with empty quantized layers in the places of the float ones."""
    with torch.device("meta"):
        for record in records:
            for name, config in record["layers"].items():
                model = restore_layer(model, name, config)
    for record in records:
        for name, first in record["tied"].items():
            owner = quantized_weight(model.get_submodule(name))
            owner.packed = quantized_weight(model.get_submodule(first)).packed
    return model


def _aliases(model: nn.Module, stored: set[str]) -> dict[str, str]:
    """The names under which no tensor is stored, each with the name of the same tensor that is."""
    by_tensor: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name, tensor in state.items():
        if name in stored:
            by_tensor.setdefault(id(tensor), name)
    missing = [name for name, tensor in state.items() if name not in stored and id(tensor) not in by_tensor]
    if missing or stored - state.keys():
        odd = min(missing or stored - state.keys())
        raise FewbitError(f"the tensor {odd} does not fit the model; please report this with the config.json")
    return {name: by_tensor[id(tensor)] for name, tensor in state.items() if name not in stored}
