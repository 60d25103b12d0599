"""Progress with the time that is left."""

from __future__ import annotations

import io

import pytest

from fewbit.cli import progress
from fewbit.cli.progress import Lines, clock, seconds_left


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_the_time_left_is_that_of_the_rest_at_the_pace_so_far() -> None:
    assert seconds_left(10.0, 1, 4) == 30.0
    assert seconds_left(30.0, 3, 4) == 10.0
    assert seconds_left(5.0, 0, 4) is None, "no pace yet"
    assert seconds_left(5.0, 4, 4) is None
    assert seconds_left(5.0, 1, 0) is None, "of unknown length"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3723, "1:02:03")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_line_now_and_then_where_there_is_no_terminal() -> None:
    stream, now = io.StringIO(), Clock()
    lines = Lines(stream, every=30, now=now)
    lines.update("load", 0, 0)
    lines.update("load", 1, 1)
    lines.update("blocks", 0, 4)
    for done in range(1, 9):
        now.time += 10
        if done % 2 == 0:
            lines.update("blocks", done // 2, 4)
        lines.update("passes", done, 8)
    told = stream.getvalue().splitlines()
    assert told == [
        "fewbit: blocks 2 of 4, 0:40 passed, about 0:40 left; passes 3 of 8, 0:30 passed, about 0:50 left",
        "fewbit: blocks 3 of 4, 1:10 passed, about 0:23 left; passes 7 of 8, 1:00 passed, about 0:09 left",
    ]
    lines.stop()


def test_bars_on_a_terminal_tell_counts_and_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.shown() as bars:
        bars.update("load", 0, 0)
        bars.update("blocks", 1, 3)
    told = capsys.readouterr().err
    assert "load" in told
    assert "1 of 3" in told
    assert "left" in told
