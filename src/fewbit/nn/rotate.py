"""Rotating the residual stream of a model, folded into its weights, so that the model computes the same.

With the residual stream h, a rotation R and a norm ``n ⊙ h/rms(h)`` in front of a linear W (QuaRot, arXiv 2404.00456,
section 4): ``rms(hR) = rms(h)``, so ``W diag(n) R`` reads ``hR`` as W read h, and ``Rᵀ W`` writes to it. Embeddings are
multiplied by R, the output layer takes the final norm's weight and R. An output layer that was tied to the embedding
gets a weight of its own.

Values are rotated within each head as well: attention mixes tokens, not channels, so the output projection can undo
it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.algorithms.rotation import rotation
from fewbit.errors import failing
from fewbit.models import Group, Layout, layout
from fewbit.models.table import Reader
from fewbit.nn import kinds


@torch.no_grad()
def rotate(model: nn.Module) -> list[str]:
    """Rotate what can be rotated, in place.

    Returns:
        Notes for the user: what was rotated, and why not what was not.
    """
    found = layout(model)
    if found.family == "generic":
        return ["nothing was rotated: this architecture has no table in fewbit.models"]
    notes = []
    if found.no_rotation:
        notes.append(f"the residual stream was not rotated: {found.no_rotation}")
    else:
        notes += _rotate_residual(model, found)
    heads = sum(_rotate_values(model, found, group) for block in found.blocks for group in block.groups)
    if heads:
        notes.append(f"the values of {heads} attention layers were rotated within each head")
    return notes


def _rotate_residual(model: nn.Module, found: Layout) -> list[str]:
    problem = _problem(model, found)
    if problem:
        return [f"the residual stream was not rotated: {problem}"]
    head = model.get_submodule(found.head) if found.head else None
    untied = head is not None and _untie(model, head, [model.get_submodule(name) for name in found.embeddings])
    size = _matrix(model.get_submodule(found.embeddings[0])).shape[1]
    matrix = rotation(size)
    for name in found.embeddings:
        _set(model.get_submodule(name), _matrix(model.get_submodule(name)) @ matrix)
    for block in found.blocks:
        for reader in block.readers:
            _absorb(model, reader, matrix)
        for name in block.writers:
            _write(model.get_submodule(name), matrix)
    if found.final_norm and found.head:
        _absorb(model, Reader(found.final_norm, (found.head,)), matrix)
    said = f"the residual stream of {size} channels was rotated"
    return [f"{said}; the output layer has a weight of its own now" if untied else said]


def _problem(model: nn.Module, found: Layout) -> str:
    """Why this model cannot be rotated although its family can."""
    if not found.embeddings or not found.final_norm or not found.head:
        return "the model has no output layer that could undo it"
    readers = [reader for block in found.blocks for reader in block.readers]
    for name in [*(reader.norm for reader in readers), found.final_norm]:
        module = model.get_submodule(name)
        if isinstance(module, nn.LayerNorm) or getattr(module, "bias", None) is not None:
            return f"{name} subtracts a mean or adds a bias"
    return ""


def _absorb(model: nn.Module, reader: Reader, matrix: Tensor) -> None:
    """Fold a norm's weight and the rotation into everything that reads it; the norm multiplies by 1 from now on."""
    norm = model.get_submodule(reader.norm)
    weight = norm.weight
    assert isinstance(weight, Tensor)
    plus_one = _multiplies_by_one_plus(norm)
    factor = weight.to(torch.float64) + (1 if plus_one else 0)
    for name in reader.modules:
        module = model.get_submodule(name)
        _set(module, (_matrix(module) * factor) @ matrix)
    weight.fill_(0 if plus_one else 1)


def _write(module: nn.Module, matrix: Tensor) -> None:
    _set(module, matrix.T @ _matrix(module))
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor):
        bias.copy_((bias.to(torch.float64) @ matrix).to(bias.dtype))


def _rotate_values(model: nn.Module, found: Layout, group: Group) -> bool:
    """Rotate the value channels of one attention layer within each head."""
    feed = group.feed
    if feed is None or feed.kind != "values" or not found.heads or len(group.linears) != 1:
        return False
    source, target = model.get_submodule(feed.path), model.get_submodule(group.linears[0])
    width = _matrix(target).shape[1] // found.heads
    channels, matrix = width * found.key_value_heads, rotation(width)
    rows = _matrix(source)
    if rows.shape[0] < channels or width * found.heads != _matrix(target).shape[1]:
        return False
    last = rows[-channels:].reshape(-1, width, rows.shape[1])
    rows[-channels:] = (matrix.T @ last).reshape(channels, -1)
    _set(source, rows)
    bias = getattr(source, "bias", None)
    if isinstance(bias, Tensor):
        turned = bias[-channels:].to(torch.float64).reshape(-1, width) @ matrix
        bias[-channels:] = turned.reshape(-1).to(bias.dtype)
    columns = _matrix(target)
    _set(target, (columns.reshape(columns.shape[0], -1, width) @ matrix).reshape(columns.shape))
    return True


def _untie(model: nn.Module, head: nn.Module, embeddings: list[nn.Module]) -> bool:
    """Give the output layer a weight of its own where it shares the embedding's."""
    weight = head.weight
    if not any(getattr(embedding, "weight", None) is weight for embedding in embeddings):
        return False
    assert isinstance(weight, Tensor)
    head.weight = nn.Parameter(weight.detach().clone())
    config: Any = getattr(model, "config", None)
    for each in (config, config.get_text_config() if hasattr(config, "get_text_config") else None):
        if each is not None:
            each.tie_word_embeddings = False
    return True


def _multiplies_by_one_plus(norm: nn.Module) -> bool:
    """Whether the norm's weight has 1 added to it, seen from what it computes."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    kept = weight.detach().clone()
    weight.zero_()
    ones = torch.ones(1, 1, weight.shape[0], dtype=weight.dtype, device=weight.device)
    with failing(f"a norm ({type(norm).__name__}) failed on a vector of ones", "leave rotation out"):
        answer = bool(norm(ones).any())
    weight.copy_(kept)
    return answer


def _matrix(module: nn.Module) -> Tensor:
    """A copy of the weight in float64 as ``[out, K]`` (an embedding: ``[tokens, channels]``)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    double = weight.detach().to(torch.float64, copy=True)
    return double.T.contiguous() if kinds.kind(module) == "Conv1D" else double


def _set(module: nn.Module, matrix: Tensor) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight.copy_((matrix.T if kinds.kind(module) == "Conv1D" else matrix).to(weight.dtype))
