"""``fewbit demo``: what it measures is tested with the demo; here, how it is shown."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest

from fewbit.errors import MissingExtraError

Command = Callable[..., Any]  # arguments in, an Outcome out


class Result:
    def document(self) -> dict[str, Any]:
        return {"quick": True}

    def tables(self) -> list[str]:
        return ["a table", "another"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    asked: list[bool] = []

    def measure(quick: bool, progress: Callable[[str, int, int], None]) -> Result:
        asked.append(quick)
        progress("demo", 1, 1)
        print("the demo talks")
        return Result()

    monkeypatch.setattr(importlib.import_module("fewbit.demo.run"), "measure", measure)
    return asked


def test_tables_for_people(command: Command, asked: list[bool]) -> None:
    done = command("demo")
    assert (done.code, done.stdout) == (0, "a table\n\nanother\n\n")
    assert asked == [False]


def test_one_document_for_programs(command: Command, asked: list[bool]) -> None:
    done = command("demo", "--quick", "--json")
    assert done.document == {"quick": True}
    assert done.stderr == "the demo talks\n"
    assert asked == [True]


def test_missing_packages_are_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> None:
        raise MissingExtraError("this needs the package gensim: pip install 'fewbit[demo]'")

    monkeypatch.setattr(importlib.import_module("fewbit.demo.run"), "measure", measure)
    done = command("demo", "--json")
    assert done.code == 2
    assert "fewbit[demo]" in done.document["error"]
