"""The words in which a model family is described: frozen tables of paths, nothing that runs.

Paths inside a block are relative to the block; a ``*`` stands for the number of an expert. Which family a model belongs
to is told by ``config.model_type``, which is the name of a file of this package.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feed:
    """What computes the input of a group of linears, so that a scale of its channels can be folded into it.

    Attributes:
        path: The module.
        kind: ``"norm"`` (LayerNorm or RMSNorm that multiplies by its weight); ``"norm_plus_one"`` (Gemma's RMSNorm,
            which multiplies by one plus its weight); ``"linear"`` (the last K rows of a linear, with only a gate or
            ReLU between, which let a positive factor of a channel pass); ``"values"`` (the last rows of a linear, one
            for each channel of each key-value head, with attention between).
        only_if: ``"attribute"`` or ``"attribute=value"`` of the config that must hold, or empty.
    """

    path: str
    kind: str = "norm"
    only_if: str = ""


@dataclass(frozen=True)
class Group:
    """Linears of a block that read the same input.

    Attributes:
        linears: Their paths.
        feed: Where a scale of their input's channels can be folded; None where it cannot.
        why: The reason where it cannot.
    """

    linears: tuple[str, ...]
    feed: Feed | None = None
    why: str = ""


@dataclass(frozen=True)
class Reader:
    """A norm on the residual stream and every module whose weight's columns read its output."""

    norm: str
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Stack:
    """A list of equal blocks.

    Attributes:
        blocks: The path of the ``ModuleList``, from the base model.
        groups: The linears of a block, in the order in which data meets them.
        readers: What reads the residual stream, for rotations; empty where there are none.
        writers: The linears whose output is added to the residual stream, for rotations.
    """

    blocks: str
    groups: tuple[Group, ...]
    readers: tuple[Reader, ...] = ()
    writers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        stacks: The lists of blocks, in the order in which data meets them.
        embeddings: What makes the input of the first block, from the base model.
        final_norm: The norm behind the last block, from the base model.
        head: The output layer, from the whole model.
        no_rotation: Why the residual stream cannot be rotated; empty where it can.
    """

    stacks: tuple[Stack, ...]
    embeddings: tuple[str, ...] = ()
    final_norm: str = ""
    head: str = ""
    no_rotation: str = ""
