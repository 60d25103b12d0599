"""Old objects are left out for a while, newer ones are not."""

from __future__ import annotations

import gc
import weakref

import pytest

from fewbit.sequential.collector import old_objects_left_out


class Loop:
    """An object that only the collector frees."""

    def __init__(self) -> None:
        self.me = self


def test_only_newer_cycles_are_collected_meanwhile() -> None:
    gc.unfreeze()
    old = weakref.ref(Loop())
    with old_objects_left_out():
        new = weakref.ref(Loop())
        gc.collect()
        assert new() is None
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert old() is None


def test_an_error_ends_it() -> None:
    gc.unfreeze()
    with pytest.raises(ValueError, match="x"), old_objects_left_out():
        raise ValueError("x")
    assert gc.get_freeze_count() == 0


def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with old_objects_left_out():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
