"""Progress of long work on stderr: bars on a terminal, elsewhere a line now and then; both tell what time is left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between two lines where nobody sees a bar.
EVERY = 30.0


class Shown(Protocol):
    """A way to show progress."""

    def update(self, stage: str, done: int, total: int) -> None:
        """A stage came so far; ``total`` is 0 where it is not known."""

    def stop(self) -> None:
        """Nothing more is shown."""


@contextlib.contextmanager
def shown() -> Iterator[Shown]:
    """Bars where stderr is a terminal, gone when done, and lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    one: Shown = Bars() if console.is_terminal else Lines(sys.stderr)
    try:
        yield one
    finally:
        one.stop()


def seconds_left(passed: float, done: int, total: int) -> float | None:
    """How long the rest takes if it goes on as so far; None where nothing is done, or nothing is left."""
    return passed * (total - done) / done if 0 < done < total else None


def clock(seconds: float) -> str:
    """``0:42``, ``12:05``, ``1:02:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Bars:
    """A bar a stage, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
        from rich.text import Text

        class Left(ProgressColumn):
            """The time that is left."""

            def render(self, task: Task) -> Text:
                left = seconds_left(task.elapsed or 0.0, int(task.completed), int(task.total or 0))
                return Text("" if left is None else f"about {clock(left)} left")

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[count]}"))
        self._bars: Progress = Progress(
            *columns, TimeElapsedColumn(), Left(), console=Console(stderr=True), transient=True
        )
        self._tasks: dict[str, TaskID] = {}
        self._bars.start()

    def update(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage; the first call starts it."""
        count = "" if total <= 1 else f"{done} of {total}"
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=None, count=count)
        self._bars.update(self._tasks[stage], completed=done, total=total if total > 0 else None, count=count)

    def stop(self) -> None:
        """Take the bars away."""
        self._bars.stop()


@dataclass
class _Stage:
    started: float
    done: int = 0
    total: int = 0


class Lines:
    """One line with every stage under way, at most every so many seconds; stages that take less show nothing.

    Args:
        stream: Where to.
        every: Seconds between two lines.
        now: A clock.
    """

    def __init__(self, stream: TextIO, every: float = EVERY, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._every, self._now = stream, every, now
        self._stages: dict[str, _Stage] = {}
        self._told = now()

    def update(self, stage: str, done: int, total: int) -> None:
        """Take a stage's state, and print a line if it is time."""
        now = self._now()
        state = self._stages.setdefault(stage, _Stage(now))
        state.done, state.total = done, total
        if now - max(self._told, state.started) < self._every or done == total:
            return
        self._told = now
        under_way = {name: each for name, each in self._stages.items() if each.done < each.total}
        print("fewbit: " + "; ".join(_told(name, each, now) for name, each in under_way.items()), file=self._stream)
        self._stream.flush()

    def stop(self) -> None:
        """Nothing to take away."""


def _told(name: str, stage: _Stage, now: float) -> str:
    passed = now - stage.started
    left = seconds_left(passed, stage.done, stage.total)
    rest = "" if left is None else f", about {clock(left)} left"
    return f"{name} {stage.done} of {stage.total}, {clock(passed)} passed{rest}"
