"""Pieces of work on threads of one thread each."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fewbit.kernels.side_by_side import Slots, kept_pool, pool, side_by_side


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_come_in_order_and_the_callers_threads_stay(threads: int) -> None:
    torch.set_num_threads(threads)
    found = side_by_side(lambda n: (n * n, torch.get_num_threads()), range(7))
    assert found == [(n * n, 1) for n in range(7)]
    assert torch.get_num_threads() == threads


def test_an_error_is_passed_on() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        side_by_side(lambda n: 1 // n, [1, 0, 2])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be bound here")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_are_bound_where_each_core_has_one(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    cores, bound = set(list(os.sched_getaffinity(0))[:1]), []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {10, 11})
    monkeypatch.setattr(os, "sched_setaffinity", lambda who, where: bound.append((who, tuple(where))))
    slots = Slots(count)
    slots.take()
    assert bound == ([(0, (10,))] if count == 2 else [])
    assert cores


def test_only_so_many_have_a_place() -> None:
    slots, running, most, lock = Slots(2), 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        slots.take()
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        slots.give()

    threads = [threading.Thread(target=work) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most <= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    assert side_by_side(str, [1, 2]) == ["1", "2"]
    child = os.fork()
    if not child:
        os._exit(0 if side_by_side(str, [3, 4]) == ["3", "4"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def seen_by_a_new_thread() -> int:
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(torch.get_num_threads).result()


@pytest.mark.parametrize("kind", ["kept", "own"])
def test_threads_that_begin_later_have_the_callers_number(kind: str) -> None:
    torch.set_num_threads(3)
    if kind == "kept":
        kept_pool(3).submit(int).result()
    else:
        with pool(1) as workers:
            assert workers.submit(torch.get_num_threads).result() == 1
    assert seen_by_a_new_thread() == 3
