"""What every command shares: streams, exit codes, one sentence for every error."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import typer
from rich.table import Table

from fewbit.cli.session import Terminated, check_output, running, tell_error
from fewbit.errors import FewbitError, FewbitWarning, MissingExtraError


@pytest.fixture(autouse=True)
def no_traceback_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEWBIT_TRACEBACK", raising=False)


def fails_with(error: BaseException, as_json: bool = False) -> int:
    with pytest.raises(typer.Exit) as left, running(as_json):
        raise error
    return int(left.value.exit_code)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (FewbitError("the tensor w holds NaN"), 2, "fewbit: the tensor w holds NaN"),
        (MissingExtraError("needs plotly"), 2, "fewbit: needs plotly"),
        (FileNotFoundError(2, "No such file or directory", "x.bin"), 2, "fewbit: x.bin: No such file or directory"),
        (PermissionError(13, "Permission denied", "y"), 2, "fewbit: y: Permission denied"),
        (OSError("odd"), 2, "fewbit: odd"),
        (SystemExit(3), 2, "fewbit: the code of the source ended the program (SystemExit: 3)"),
        (Terminated(), 143, "fewbit: interrupted"),
        (KeyboardInterrupt(), 130, "fewbit: interrupted"),
        (MemoryError(), 1, "fewbit: there is not enough memory; a smaller --batch-size needs less"),
        (ZeroDivisionError("0\n1"), 1, "fewbit: ZeroDivisionError: 0 1 (set FEWBIT_TRACEBACK=1 to see where)"),
        (RuntimeError(), 1, "fewbit: RuntimeError: no message (set FEWBIT_TRACEBACK=1 to see where)"),
    ],
)
def test_errors_are_one_sentence_and_a_code(
    error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fails_with(error) == code
    captured = capsys.readouterr()
    assert captured.err == told + "\n"
    assert captured.out == ""


def test_with_json_the_error_is_also_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails_with(FewbitError('a "quoted"\nname'), as_json=True) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"error": 'a "quoted" name'}
    assert captured.err == 'fewbit: a "quoted" name\n'


def test_a_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWBIT_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError), running(False):
        raise ZeroDivisionError


def test_leaving_early_is_no_error() -> None:
    with pytest.raises(typer.Exit) as left, running(False):
        raise typer.Exit(5)
    assert left.value.exit_code == 5


def test_only_the_document_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with running(True) as session:
        print("a library talks")
        session.result({"value": float("inf"), "path": Path("x")}, "not shown")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"value": "inf", "path": "x"}
    assert captured.err == "a library talks\n"


def test_people_see_tables_of_full_width(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("heading")
    table.add_row("x" * 200)
    with running(False) as session:
        print("a library talks")
        session.result({"value": 1}, table, "closing words")
    captured = capsys.readouterr()
    assert "x" * 200 in captured.out
    assert captured.out.endswith("closing words\n")
    assert "value" not in captured.out
    assert captured.err == "a library talks\n"


def test_stdout_is_back_after_an_error() -> None:
    before = sys.stdout
    fails_with(FewbitError("x"))
    assert sys.stdout is before


def test_warnings_of_libraries_are_not_shown(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    with running(False) as session:
        warnings.warn("deprecated", FutureWarning, stacklevel=1)
        session.result({})
    assert capsys.readouterr().err == ""
    assert not recwarn.list


def test_progress_is_silent_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with running(False) as session:
        with session.stage("load"):
            session.progress("calibrate", 1, 2)
        session.progress("calibrate", 2, 2)
        session.result({})
    assert capsys.readouterr() == ("", "")


def test_progress_shows_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with running(True) as session:
        with session.stage("load the model"):
            session.progress("calibrate", 1, 2)
        session.result({"done": True})
    captured = capsys.readouterr()
    assert "calibrate" in captured.err
    assert "load the model" in captured.err
    assert json.loads(captured.out) == {"done": True}


def test_an_error_told_alone(capsys: pytest.CaptureFixture[str]) -> None:
    tell_error("two\n  lines", as_json=False)
    assert capsys.readouterr().err == "fewbit: two lines\n"


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    check_output(tmp_path / "new", folder=True, overwrite=False)
    check_output(tmp_path / "new", folder=False, overwrite=False)
    check_output(tmp_path / "empty", folder=True, overwrite=False)
    check_output(tmp_path / "full", folder=True, overwrite=True)
    check_output(tmp_path / "file", folder=False, overwrite=True)
    for name, folder, overwrite, told in (
        ("full", True, False, "--overwrite"),
        ("file", False, False, "--overwrite"),
        ("file", True, True, "is a file"),
        ("full", False, True, "is a folder"),
    ):
        with pytest.raises(FewbitError, match=told):
            check_output(tmp_path / name, folder=folder, overwrite=overwrite)


def test_our_own_warnings_are_one_sentence_on_stderr_and_no_others(capsys: pytest.CaptureFixture[str]) -> None:
    before = warnings.showwarning
    with running(as_json=True) as session:
        warnings.warn("of a library", UserWarning, stacklevel=1)
        for _ in range(2):
            warnings.warn("hardly\nof use", FewbitWarning, stacklevel=1)
        session.result({"done": 1})
    captured = capsys.readouterr()
    assert captured.err == "fewbit: warning: hardly of use\n" * 2
    assert json.loads(captured.out) == {"done": 1}
    assert warnings.showwarning is before
