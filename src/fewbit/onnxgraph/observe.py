"""Calibration: run the float graph with the tensors of interest as outputs, and let streaming statistics see them.

At no time is more held than two pieces: where the first axis of every input is the batch's, a batch is run in pieces
whose observed tensors stay below ``PIECE_BYTES`` together. Two threads take one piece after the other, run it with half
of the cores and then look at it, in the pieces' order: while the one counts, the other computes, and neither waits for
the other within an operator.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import Condition, local
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fewbit.calibrate.collect import Progress
from fewbit.calibrate.statistic import Statistic
from fewbit.errors import FewbitError
from fewbit.onnxgraph.session import Feeds, Runner

if TYPE_CHECKING:
    from fewbit.onnxgraph.grams import Grams
    from fewbit.onnxgraph.means import Means

# More at a time is slower: each large array is fresh memory, whose pages the kernel clears.
PIECE_BYTES = 32 * 2**20
_WORKERS = 2


def observe(
    model: Any,
    statistics: dict[str, list[Statistic]],
    batches: Iterable[Any],
    progress: Progress | None = None,
    *,
    means: Means | None = None,
    grams: Grams | None = None,
    stage: str = "calibrate",
    threads: int = 0,
) -> int:
    """Feed every named tensor to its statistics.

    Args:
        model: The simplified float model; it is not changed.
        statistics: By tensor name.
        batches: Calibration data.
        progress: Called with (stage, batches done, batches in all).
        means: Mean inputs of layers, collected in the same pass.
        grams: Gram matrices of layer inputs, collected in the same pass.
        stage: Told to ``progress``.
        threads: Of the runtime.

    Returns:
        How many batches there were.

    Raises:
        FewbitError: There was no batch, the model failed on one, or a tensor holds NaN or infinity.
    """

    def see(found: dict[str, np.ndarray], samples: int) -> None:
        for name, array in found.items():
            for statistic in statistics.get(name, ()) if array.size else ():
                statistic.update(torch.from_numpy(array))
        if means is not None:
            means.see(found, samples)
        if grams is not None:
            grams.see(found)

    more = [name for names in (means, grams) if names is not None for name in names.names]
    tensors = list(dict.fromkeys([*statistics, *more]))
    with means.computed(model) if means is not None else nullcontext():
        return stream(model, tensors, batches, see, progress, stage=stage, threads=threads)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Statistics in one thread, so that none of theirs waits for work while the runtime computes on all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def stream(
    model: Any,
    tensors: list[str],
    batches: Iterable[Any],
    see: Callable[[dict[str, np.ndarray], int], None],
    progress: Progress | None = None,
    *,
    stage: str = "calibrate",
    threads: int = 0,
) -> int:
    """Run over all batches in pieces and hand each piece's tensors and count of samples to ``see``, in order; see
    :func:`observe`. The arrays are written to again after ``see`` has returned."""
    inputs = {value.name for value in model.graph.inputs}
    with exposed(model, [name for name in tensors if name not in inputs]):
        threads = threads or torch.get_num_threads()
        workers = min(_WORKERS, threads)
        runner = Runner(model, threads=threads // workers, arena=True)
    pieces = _Pieces(runner, [name for name in tensors if name not in inputs], model)
    total = len(batches) if isinstance(batches, Sized) else 0
    count, line = 0, _Line()

    def work(ticket: int, feeds: Feeds, number: int) -> None:
        with line.behind(ticket):
            found = pieces.run(feeds, number)
            found |= {name: feeds[name] for name in tensors if name in inputs}
            line.wait(ticket)
            see(found, _samples(feeds))

    with _one_thread(), ThreadPoolExecutor(workers) as pool:
        under_way: deque[Future[None]] = deque()
        for count, batch in enumerate(batches, 1):
            for feeds in pieces.split(batch, count):
                if len(under_way) == workers:
                    under_way.popleft().result()
                under_way.append(pool.submit(work, line.ticket(), feeds, count))
            if progress is not None:
                progress(stage, count, total)
        for one in under_way:
            one.result()
    if count == 0:
        raise FewbitError("the calibration data is empty; pass at least one batch")
    return count


class _Line:
    """Who is next: tickets are drawn in order, and each waits until those before it have left, also by an error."""

    def __init__(self) -> None:
        self.drawn, self.left = 0, 0
        self.moved = Condition()

    def ticket(self) -> int:
        """The next number."""
        self.drawn += 1
        return self.drawn - 1

    def wait(self, ticket: int) -> None:
        """Until all before have left."""
        with self.moved:
            self.moved.wait_for(lambda: self.left == ticket)

    @contextmanager
    def behind(self, ticket: int) -> Iterator[None]:
        """Leave at the end, when all before have."""
        try:
            yield
        finally:
            self.wait(ticket)
            with self.moved:
                self.left += 1
                self.moved.notify_all()


def one_sample(model: Any, feeds: Feeds) -> Feeds:
    """The first sample of a batch, where the model's batch is free; else the batch."""
    if _free(model) and len({len(array) for array in feeds.values() if array.ndim}) == 1:
        return {name: array[:1] for name, array in feeds.items()}
    return feeds


def _free(model: Any) -> bool:
    """Whether the first axis of every input is of no fixed size."""
    found = [not isinstance(value.shape[0], int) for value in model.graph.inputs if value.shape]
    return bool(found) and all(found)


def _samples(feeds: Feeds) -> int:
    return max((len(array) for array in feeds.values() if array.ndim), default=1)


class exposed:
    """The model with other tensors as its outputs, for as long as it lasts."""

    def __init__(self, model: Any, tensors: list[str]) -> None:
        self.graph, self.tensors = model.graph, tensors

    def __enter__(self) -> None:
        """Replace the outputs."""
        values = {value.name: value for value in (*self.graph.initializers.values(), *self.graph.inputs)}
        values |= {value.name: value for node in self.graph for value in node.outputs}
        self.before = list(self.graph.outputs)
        self.graph.outputs.clear()
        self.graph.outputs.extend([values[name] for name in self.tensors] or self.before)

    def __exit__(self, *_: object) -> None:
        """Put them back."""
        self.graph.outputs.clear()
        self.graph.outputs.extend(self.before)


class _Pieces:
    """Batches cut along their first axis so that what is observed stays small."""

    def __init__(self, runner: Runner, tensors: list[str], model: Any) -> None:
        self.runner, self.tensors = runner, tensors
        self.may_split = _free(model)
        self.size = 0
        self.spare = local()  # what this thread's last run put out, and the sizes of the inputs that gave it

    def split(self, batch: Any, number: int) -> Iterator[Feeds]:
        try:
            feeds = self.runner.feeds(batch)
        except FewbitError as error:
            raise FewbitError(f"calibration batch {number}: {error}") from error
        counts = {len(array) for array in feeds.values() if array.ndim}
        count = counts.pop() if len(counts) == 1 else 1
        if not self.may_split or count <= 1:
            yield feeds
            return
        if not self.size:
            self.size = self._fitting({name: array[:1] for name, array in feeds.items()}, number)
        for start in range(0, count, self.size):
            yield {name: array[start : start + self.size] for name, array in feeds.items()}

    def run(self, feeds: Feeds, number: int) -> dict[str, np.ndarray]:
        """The tensors of one piece, good until this thread's next run, which may write into the same arrays."""
        shapes = {name: array.shape for name, array in feeds.items()}
        known, arrays = getattr(self.spare, "last", ({}, {}))
        if shapes == known and all(array.size for array in arrays.values()):
            try:
                self.runner.run_into(feeds, arrays)
                return dict(arrays)
            except FewbitError:  # sizes hang on values; or the plain run tells what is wrong
                pass
        try:
            found = self.runner.run(feeds, self.tensors)
        except FewbitError as error:
            raise FewbitError(f"calibration batch {number}: {error}") from error
        self.spare.last = (shapes, found)
        return dict(found)

    def _fitting(self, sample: Feeds, number: int) -> int:
        """How many samples at a time; how large the tensors of one are is found by running it."""
        found = self.run(sample, number)
        return max(1, PIECE_BYTES // max(1, sum(array.nbytes for array in found.values())))
