"""Work side by side on threads that compute on one thread each.

What a piece of work gives so does not depend on how many there are. Each thread is bound to a core of its own: threads
that pass the interpreter's lock to each other wake each other, and Linux often puts who is woken on the waker's core
and leaves both there for some milliseconds while another core idles; of two threads on two cores that cost 14% of the
time of forward passes.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

T = TypeVar("T")
U = TypeVar("U")


class Slots:
    """Places for threads of which only so many run at a time.

    Args:
        count: How many. Only where that is the number of this process's cores is each bound to one: else other threads
            or processes, which count on the rest, might be bound to the same.
    """

    def __init__(self, count: int) -> None:
        cores = sorted(os.sched_getaffinity(os.getpid())) if hasattr(os, "sched_getaffinity") else []
        self._cores = cores if 1 < count == len(cores) else None
        self._free: SimpleQueue[int] = SimpleQueue()
        for number in range(count):
            self._free.put(number)
        self._mine = threading.local()

    def take(self) -> None:
        """Wait for a place; this thread has it until it gives it back."""
        number = self._mine.number = self._free.get()
        if self._cores is not None:
            os.sched_setaffinity(0, {self._cores[number]})

    def give(self) -> None:
        """Give it back; the thread stays bound until it takes another."""
        self._free.put(self._mine.number)


def on_one_thread(others: int) -> None:
    """Let this thread, which was just started, compute on one.

    torch remembers the last number that any thread asked for, and gives it to those that begin later: so it is told the
    number for the others again, by a thread that ends at once.
    """
    torch.get_num_threads()  # a new thread takes that number once, when it first needs one: now, not after this
    torch.set_num_threads(1)
    teller = threading.Thread(target=torch.set_num_threads, args=(others,), daemon=True)
    teller.start()
    teller.join()


def pool(threads: int) -> ThreadPoolExecutor:
    """Threads of which each computes on one."""
    slots, others = Slots(threads), max(threads, torch.get_num_threads())  # the caller may be on one for now

    def start() -> None:
        slots.take()
        on_one_thread(others)

    return ThreadPoolExecutor(threads, initializer=start)


def side_by_side(call: Callable[[T], U], pieces: Sequence[T], most: int | None = None) -> list[U]:
    """``call`` of each piece, in their order, on as many threads as torch has, at most ``most``.

    Raises:
        Exception: What a call raised, the first one's.
    """
    threads = min(torch.get_num_threads(), len(pieces), most or len(pieces))
    if threads < 2:
        return [call(piece) for piece in pieces]
    return list(kept_pool(threads).map(call, pieces))


def kept_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: new ones begin with memory of their own, page by page."""
    return _kept_pool(threads, os.getpid())


@functools.lru_cache(maxsize=2)
def _kept_pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Told by the process, as a fork has none of the threads."""
    return pool(threads)
