"""examples/qat_cifar10.py on tiny pictures: killed runs go on, finished ones repeat, bad input is one sentence."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fewbit

from .conftest import EXAMPLES, Killed, Runs

image = pytest.importorskip("PIL.Image")
pytest.importorskip("plotly")
import _journal  # noqa: E402
import _pictures  # noqa: E402
import _training  # noqa: E402
import qat_cifar10 as example  # noqa: E402

assert EXAMPLES.is_dir()


def tiny(classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes),
    )  # fmt: skip


def write_pictures(path: Path, count: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for label in range(2):
        (path / f"class{label}").mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = random.integers(0, 120, (8, 8, 3)).astype("uint8")
            pixels[..., label] += 100
            image.fromarray(pixels).save(path / f"class{label}" / f"{index}.png")
    return path


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments of a run of a second."""
    monkeypatch.setitem(_pictures.NETWORKS, "tiny", tiny)
    train, test = write_pictures(tmp_path / "train", 10, 0), write_pictures(tmp_path / "test", 4, 1)
    arguments = ["--train", train, "--test", test, "--network", "tiny", "--size", 8, "--float-steps", 6]
    return [*arguments, "--float-rate", 0.05, "--control", 3, "--steps", "4:4,2:4", "--widths", 8, 4, 2]


def measured(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "measured.json").read_text(encoding="utf-8"))
    return found


# --- going on -----------------------------------------------------------------------------------


def test_killed_at_any_point_it_goes_on_to_the_same_result(
    given: list[object], run: Runs, kill_after: Callable[[int], None], tmp_path: Path
) -> None:
    code, table, _ = run(example, *given, "--out", tmp_path / "whole")
    assert code == 0
    assert table.count("\n| W") == 3
    assert table.count(" | 1.0000 | 0 of ") == 2
    # Steps: float 6, control 3, W4A4 4, W2A2 4. So: in and after float, in the control, after W4A4, in and after W2A2.
    out = tmp_path / "killed"
    for step in (2, 4, 2, 5, 2, 2):
        kill_after(step)
        with pytest.raises(Killed):
            run(example, *given, "--out", out)
    kill_after(1000)
    code, again, _ = run(example, *given, "--out", out)
    assert (code, again) == (0, table)
    assert measured(out) == measured(tmp_path / "whole")
    for name in ("W4A4", "W2A2"):
        one, other = fewbit.load(out / name).state_dict(), fewbit.load(tmp_path / "whole" / name).state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_finished_run_repeats_its_table_without_training_or_measuring(
    given: list[object], run: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _, table, _ = run(example, *given, "--out", out)

    def never(*_: object) -> None:
        raise AssertionError("done already")

    monkeypatch.setattr(example, "score", never)
    monkeypatch.setattr(example, "trained", never)
    monkeypatch.setattr(_training, "_save", never)
    assert run(example, *given, "--out", out)[:2] == (0, table)


def test_killed_before_its_value_was_kept_a_width_overwrites_its_own_model(
    given: list[object], run: Runs, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    _, table, _ = run(example, *given, "--out", out)
    kept = measured(out)
    del kept["W2A2 trained"]
    (out / "measured.json").write_text(json.dumps(kept), encoding="utf-8")
    assert run(example, *given, "--out", out)[:2] == (0, table)


def test_widths_can_be_added_and_other_settings_are_refused_by_name(
    given: list[object], run: Runs, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert run(example, *given, "--out", out, "--widths", 4)[0] == 0
    before = measured(out)
    code, table, _ = run(example, *given, "--out", out, "--widths", 4, 3)
    assert code == 0
    assert "| W3A3 | 0 |" in table
    for change, said in (
        (("--rate", 0.5), "--rate was 0.004 and is 0.5"),
        (("--steps", "4:5"), "--steps was 4 and is 5"),
        (("--float-steps", 7), "--float-steps was 6 and is 7"),
        (("--network", "resnet20"), "--network was tiny and is resnet20"),
        (("--train", write_pictures(tmp_path / "others", 5, 7)), "the training pictures: not the same"),
        (("--test", write_pictures(tmp_path / "others", 5, 7)), "the test pictures: not the same"),
        (("--control", 4), "--control was 3 and is 4"),
    ):
        code, _, error = run(example, *given, "--out", out, "--widths", 4, *change)
        assert code == 1
        assert said in error
        assert "another --out" in error
    assert before.items() <= measured(out).items()


def test_a_start_of_zero_further_steps_is_that_network(given: list[object], run: Runs, tmp_path: Path) -> None:
    _, _, one = run(example, *given, "--out", tmp_path / "a", "--widths", 8)
    start = ("--start", tmp_path / "a" / "float.pt", "--float-steps", 0)
    code, _, other = run(example, *given, *start, "--out", tmp_path / "b", "--widths", 8)
    assert code == 0
    assert [line for line in one.splitlines() if line.startswith("W8A8")] == [
        line for line in other.splitlines() if line.startswith("W8A8")
    ]
    code, _, error = run(example, *given, "--network", "resnet20", *start[:2], "--out", tmp_path / "c", "--widths", 8)
    assert code == 1
    assert "float.pt is the state of another network" in error
    other = tmp_path / "a" / "results.json"
    code, _, error = run(example, *given, "--start", other, "--out", tmp_path / "d", "--widths", 8)
    assert code == 1
    assert "results.json cannot be read as a state of training; name the float.pt" in error


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--train", "nowhere.zip"), "nowhere.zip does not exist"),
        (("--size", 0), "8 to 512"),
        (("--size", "big"), "8 to 512"),
        (("--float-steps", -3), "at least 0"),
        (("--float-steps", 0), "--start"),
        (("--float-rate", "nan"), "positive"),
        (("--rate", -1), "positive"),
        (("--rate", "9:0.1"), "is not like 0.01, or 4:0.004,2:0.02"),
        (("--rate", "4:0.1,2"), "is not a positive number"),
        (("--small", 2), "0 to 1"),
        (("--norms-move", "nan"), "0 to 1"),
        (("--widths", 9), "9"),
        (("--steps", "4:-1"), "negative"),
        (("--steps", "4"), "4:600"),
        (("--out", __file__), "is a file"),
    ],
)
def test_wrong_arguments_exit_with_2(given: list[object], run: Runs, arguments: tuple[object, ...], said: str) -> None:
    code, _, error = run(example, *given, *arguments)
    assert code == 2
    assert said in error.splitlines()[-1]


def test_unusable_pictures_are_named(given: list[object], run: Runs, tmp_path: Path) -> None:
    text = tmp_path / "text.zip"
    text.write_text("no archive")
    empty = tmp_path / "empty"
    empty.mkdir()
    damaged = write_pictures(tmp_path / "damaged", 2, 0)
    (damaged / "class1" / "bad.png").write_bytes(b"\x89PNG no")
    archive = tmp_path / "damaged.zip"
    with zipfile.ZipFile(archive, "w") as writer:
        writer.writestr("class0/bad.jpg", b"no picture")
        writer.writestr("class1/bad.jpg", b"no picture")
    single = tmp_path / "single"
    write_pictures(single, 1, 0)
    (single / "class1" / "0.png").unlink()
    for path, said in (
        (text, "cannot be read as a .zip"),
        (empty, "holds no pictures"),
        (damaged, "class1/bad.png cannot be read"),
        (archive, "class0/bad.jpg cannot be read"),
        (single, "one class only, 'class0'"),
    ):
        code, _, error = run(example, *given, "--train", path, "--out", tmp_path / "out")
        assert code == 1
        assert error.startswith("error: ")
        assert said in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 truncated", "truncated", "other"])
def test_a_damaged_state_is_refused_and_stays(
    given: list[object], run: Runs, tmp_path: Path, content: bytes | str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    state = out / "float.pt"
    if isinstance(content, str):
        torch.save({"model": {}, "step": 0}, state)
        content = state.read_bytes()[:-200] if content == "truncated" else state.read_bytes()
    state.write_bytes(content)
    code, _, error = run(example, *given, "--out", out)
    assert code == 1
    assert "float.pt" in error
    assert "delete it" in error
    assert state.read_bytes() == content


def test_damaged_measured_values_are_refused(given: list[object], run: Runs, tmp_path: Path) -> None:
    for content in ("{", "[]", '{"float": 3}', '{"float": {"settings": {}, "value": null}}'):
        (tmp_path / "measured.json").write_text(content, encoding="utf-8")
        code, _, error = run(example, *given, "--out", tmp_path)
        assert code == 1
        assert "measured.json does not hold measured values" in error


def test_training_that_diverges_stops_and_says_what_to_lower(given: list[object], run: Runs, tmp_path: Path) -> None:
    code, _, error = run(example, *given, "--out", tmp_path / "a", "--float-rate", 1e30)
    assert code == 1
    assert "lower --float-rate" in error
    out = tmp_path / "b"
    code, _, error = run(example, *given, "--out", out, "--rate", 1e30, "--control", 0, "--widths", 4)
    assert code == 1
    assert "W4A4: the loss is no longer finite" in error
    assert "lower --rate" in error
    assert run(example, *given, "--out", out, "--widths", 4)[0] == 0  # the float network was kept


# --- the parts ----------------------------------------------------------------------------------


def test_fingerprints_tell_values_names_shapes_and_types_apart() -> None:
    base = {"a": torch.arange(4.0), "b": torch.tensor(1)}
    others = [
        {**base, "a": torch.arange(4.0) + 1},
        {**base, "a": torch.arange(4.0).reshape(2, 2)},
        {**base, "a": torch.arange(4)},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({_journal.fingerprint(each) for each in (base, *others)}) == 6
    assert _journal.fingerprint(base) == _journal.fingerprint(dict(reversed(base.items())))
    picture = torch.rand(2, 3, 4, 4)
    last = picture.contiguous(memory_format=torch.channels_last)
    assert _journal.fingerprint({"x": picture}) == _journal.fingerprint({"x": last})


def test_zip_and_folder_give_the_same_pictures_without_hidden_files(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "train", 3, 0)
    (folder / "class0" / "._0.png").write_bytes(b"no picture")
    with zipfile.ZipFile(tmp_path / "train.zip", "w") as writer:
        for file in folder.rglob("*.png"):
            writer.write(file, file.relative_to(tmp_path).as_posix())
    one, other = (_pictures.load_pictures(path, 8) for path in (folder, tmp_path / "train.zip"))
    assert one.classes == other.classes == ("class0", "class1")
    assert one.fingerprint() == other.fingerprint()
