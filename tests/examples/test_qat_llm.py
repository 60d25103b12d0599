"""examples/qat_llm.py on a tiny text: killed runs go on, finished ones repeat, bad input is one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from .conftest import EXAMPLES, Killed, Runs

pytest.importorskip("transformers")
import qat_llm as example

assert EXAMPLES.is_dir()


@pytest.fixture
def given(tmp_path: Path) -> list[object]:
    """Arguments of a run of a second or two."""
    (tmp_path / "train.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    (tmp_path / "test.txt").write_text("the lazy dog sleeps. " * 70)
    arguments = ["--train", tmp_path / "train.txt", "--test", tmp_path / "test.txt", "--width", 8, "--layers", 1]
    return [*arguments, "--float-steps", 4, "--steps", 3, "--schemes", "W4A16-g8"]


def values(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "results.json").read_text(encoding="utf-8"))
    return found


def test_killed_at_any_point_it_goes_on_to_the_same_result(
    given: list[object], run: Runs, kill_after: Callable[[int], None], tmp_path: Path
) -> None:
    code, told, _ = run(example, *given, "--out", tmp_path / "whole")
    assert code == 0
    out = tmp_path / "killed"
    for step in (2, 3, 4, 2, 2):  # of 4 in float, 3 each of the control, trained, adapters
        kill_after(step)
        with pytest.raises(Killed):
            run(example, *given, "--out", out)
    kill_after(1000)
    assert run(example, *given, "--out", out)[:2] == (0, told)
    assert values(out) == values(tmp_path / "whole")
    assert list(values(out)) == ["float", "float, trained on", *(f"W4A16-g8 {way}" for way in WAYS)]
    assert run(example, *given, "--out", out)[:2] == (0, told)  # once more: nothing is in the way
    assert run(example, *given)[1] == told  # and without any state


WAYS = ("post-training", "trained", "adapters")


def test_schemes_can_be_added_and_other_settings_are_refused_by_name(
    given: list[object], run: Runs, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(example, *given, "--out", out)[0] == 0
    before = values(out)
    assert run(example, *given, "--out", out, "--schemes", "W4A16-g8", "W3A16")[0] == 0
    assert before.items() <= values(out).items()
    for change, said in (
        (("--steps", 4), "--steps was 3 and is 4"),
        (("--float-steps", 5), "--float-steps was 4 and is 5"),
        (("--width", 16), "--width was 8 and is 16"),
        (("--test", tmp_path / "train.txt"), "the test text: not the same"),
    ):
        code, _, error = run(example, *given, "--out", out, *change)
        assert code == 1
        assert said in error


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 6, 7])
def test_few_steps_work_and_the_cycle_is_that_of_torch(steps: int) -> None:
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.AdamW([nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))

    own, theirs = optimizer(), optimizer()
    if steps >= 6:
        reference = torch.optim.lr_scheduler.OneCycleLR(theirs, 1e-3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        example.OneCycle(steps, 1e-3).apply(own, step)
        assert 0 < own.param_groups[0]["lr"] <= 1e-3
        if steps >= 6:
            assert own.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
            assert own.param_groups[0]["betas"] == pytest.approx(theirs.param_groups[0]["betas"], rel=1e-12)
            theirs.step()
            reference.step()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--train", "nowhere.txt"), "nowhere.txt does not exist"),
        (("--width", 0), "at least 8"),
        (("--width", 15), "multiple of 8"),
        (("--layers", 0), "at least 1"),
        (("--steps", 0), "at least 1"),
        (("--float-steps", 0), "at least 1"),
        (("--out", __file__), "is a file"),
    ],
)
def test_wrong_arguments_exit_with_2(given: list[object], run: Runs, arguments: tuple[object, ...], said: str) -> None:
    code, _, error = run(example, *given, *arguments)
    assert code == 2
    assert said in error.splitlines()[-1]


def test_what_cannot_be_trained_is_told_before_the_float_training(
    given: list[object], run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("trained already")

    monkeypatch.setattr(example, "train", never)
    (tmp_path / "short.txt").write_text("short")
    for change in (("--schemes", "W8A8"), ("--schemes", "W9A16"), ("--test", tmp_path / "short.txt")):
        code, _, error = run(example, *given, "--out", tmp_path / "out", *change)
        assert code == 1
        assert error.startswith("error: ")
