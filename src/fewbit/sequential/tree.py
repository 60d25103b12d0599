"""A fixed binary tree over calibration windows, so that one process and many add up the same bits.

Floating sums depend on their order. Windows are cut into at most :data:`LEAVES` consecutive runs, the leaves; within
a leaf windows are added one after another, and leaves are joined in pairs, pairs in pairs, and so on. Which process
computed a leaf does not matter, and at most ``log2(LEAVES)`` finished sums wait for their neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

#: The most processes that calibration data can be split over.
LEAVES = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Node(Generic[T]):
    """The sum of a whole subtree: number ``index`` of those with ``2**level`` leaves."""

    level: int
    index: int
    value: T


def leaves(windows: int) -> list[range]:
    """The windows of each leaf: a power of two of non-empty runs, at most :data:`LEAVES`."""
    count = 1
    while count * 2 <= min(windows, LEAVES):
        count *= 2
    return [range(i * windows // count, (i + 1) * windows // count) for i in range(count)]


def share(leaf_count: int, rank: int, ranks: int) -> range:
    """The leaves that one of several processes computes."""
    return range(rank * leaf_count // ranks, (rank + 1) * leaf_count // ranks)


class Fold(Generic[T]):
    """Joins nodes that come in order, from the first leaf to the last, as soon as both halves of a pair are there.

    Args:
        join: The sum of two neighbours, the left one first; it may use up both.
    """

    def __init__(self, join: Callable[[T, T], T]) -> None:
        self.join = join
        self.waiting: list[Node[T]] = []

    def push(self, node: Node[T]) -> None:
        """Take in the next node."""
        while self.waiting and node.index % 2 and self._is_left(self.waiting[-1], node):
            left = self.waiting.pop()
            node = Node(node.level + 1, node.index // 2, self.join(left.value, node.value))
        self.waiting.append(node)

    def extend(self, nodes: Sequence[Node[T]]) -> None:
        """Take in several."""
        for node in nodes:
            self.push(node)

    def root(self) -> T:
        """The sum of all leaves; every one of them was taken in."""
        (node,) = self.waiting
        return node.value

    @staticmethod
    def _is_left(left: Node[T], right: Node[T]) -> bool:
        return left.level == right.level and left.index + 1 == right.index
