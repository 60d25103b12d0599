"""The sum over windows does not depend on who computed which leaf."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewbit.sequential.tree import LEAVES, Fold, Node, leaves, share


@pytest.mark.parametrize("windows", range(1, 40))
def test_leaves_are_runs_of_all_windows(windows: int) -> None:
    cut = leaves(windows)
    assert [window for leaf in cut for window in leaf] == list(range(windows))
    assert all(len(leaf) > 0 for leaf in cut)
    assert len(cut) in (1, 2, 4, 8)
    assert len(cut) == LEAVES or windows < LEAVES


def text(windows: int, ranks: int) -> str:
    """The brackets in which several processes add up their leaves."""
    cut = leaves(windows)
    whole: Fold[str] = Fold(lambda left, right: f"({left}+{right})")
    for rank in range(ranks):
        own: Fold[str] = Fold(lambda left, right: f"({left}+{right})")
        for leaf in share(len(cut), rank, ranks):
            own.push(Node(0, leaf, str(leaf)))
        whole.extend(own.waiting)
    return whole.root()


@given(st.integers(1, 70), st.integers(1, 11))
def test_any_number_of_processes_adds_in_the_same_order(windows: int, ranks: int) -> None:
    assert text(windows, ranks) == text(windows, 1)


def test_the_tree_is_binary() -> None:
    assert text(8, 1) == "(((0+1)+(2+3))+((4+5)+(6+7)))"


def test_few_sums_wait() -> None:
    fold: Fold[int] = Fold(lambda left, right: left + right)
    most = 0
    for leaf in range(LEAVES):
        fold.push(Node(0, leaf, 1))
        most = max(most, len(fold.waiting))
    assert (fold.root(), most) == (LEAVES, 3)
