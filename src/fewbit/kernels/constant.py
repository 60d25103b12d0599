"""What the compiler need not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def constant_in_graphs(function: Callable[P, T]) -> Callable[P, T]:
    """Have ``torch.compile`` and ``torch.export`` call ``function`` while they trace and keep what it gave.

    ``torch.compiler.assume_constant_result`` does the same by the same mark, but imports the compiler to set it: 0.9 s
    for everyone who never compiles.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
