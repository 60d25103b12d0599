"""What every command shares: where output goes, how errors end, how progress shows.

stdout holds the result and nothing else: tables for people, or with ``--json`` exactly one JSON document.
Whatever a model, a library or a factory prints meanwhile goes to stderr. Exit codes: 0 done, 2 the user can
mend it (one sentence says how), 130 and 143 interrupted, 1 anything else.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from fewbit.atomic import check_apart
from fewbit.cli.progress import Shown, shown
from fewbit.errors import FewbitError, FewbitWarning, told

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Set to anything, it lets an unexpected error end with Python's traceback.
TRACEBACK_VARIABLE = "FEWBIT_TRACEBACK"

USER_ERROR, INTERRUPTED, TERMINATED = 2, 130, 143


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


class Session:
    """One run of one command.

    Attributes:
        as_json: Whether the result is a JSON document.
        stdout: The real one, for results that come piece by piece; ``sys.stdout`` goes to stderr meanwhile.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.document: dict[str, Any] | None = None
        self.shown: list[RenderableType] = []
        self.stdout: TextIO = sys.stdout
        self._sink: Shown | None = None

    def result(self, document: dict[str, Any], *shown: RenderableType) -> None:
        """What the command found: the JSON document, and what people see instead of it."""
        self.document, self.shown = document, list(shown)

    def progress(self, stage: str, done: int, total: int) -> None:
        """A stage came so far, see :mod:`fewbit.cli.progress`."""
        if self._sink is not None:
            self._sink.update(stage, done, total)

    @contextlib.contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Show a moving bar while something of unknown length goes on."""
        self.progress(text, 0, 0)
        yield
        self.progress(text, 1, 1)

    def stop_bars(self) -> None:
        """Take the bars away for good, before a result is written piece by piece."""
        if self._sink is not None:
            self._sink.stop()
            self._sink = None

    @contextlib.contextmanager
    def bars(self) -> Iterator[None]:
        """Show progress on stderr meanwhile."""
        with shown() as self._sink:
            try:
                yield
            finally:
                self._sink = None


@contextlib.contextmanager
def running(as_json: bool) -> Iterator[Session]:
    """Run a command's body, then print its result or its error.

    Raises:
        typer.Exit: With the exit code, when something went wrong.
    """
    session, stdout = Session(as_json), sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings(), session.bars():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
                warnings.simplefilter("always", FewbitWarning)
                warnings.showwarning = _tell_warning
            yield session
        _print_result(session, stdout)
    except BrokenPipeError:
        _discard(stdout)
        raise typer.Exit(1) from None
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, typer.Exit) or os.environ.get(TRACEBACK_VARIABLE):
            raise
        sentence, code = _diagnosis(error)
        tell_error(sentence, as_json)
        raise typer.Exit(code) from error


def _diagnosis(error: BaseException) -> tuple[str, int]:
    """One sentence for the user, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if isinstance(error, FewbitError):
        return str(error), USER_ERROR
    if isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        return f"{error.filename}: {what}" if error.filename else what, USER_ERROR
    if isinstance(error, SystemExit):
        return f"the code of the source ended the program (SystemExit: {error.code})", USER_ERROR
    if isinstance(error, MemoryError):
        return "there is not enough memory; a smaller --batch-size needs less", 1
    said = told(error) if str(error).strip() else "no message"
    return f"{type(error).__name__}: {said} (set {TRACEBACK_VARIABLE}=1 to see where)", 1


def tell_error(sentence: str, as_json: bool) -> None:
    """Tell one sentence on stderr, with --json also as ``{"error": …}`` on stdout."""
    sentence = " ".join(sentence.split())
    print(f"fewbit: {sentence}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": sentence}), flush=True)


def _tell_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One sentence on stderr, where Python would add a file and a line."""
    print(f"fewbit: warning: {' '.join(str(message).split())}", file=sys.stderr)


def print_json(document: dict[str, Any], file: TextIO) -> None:
    """Print one JSON document."""
    from fewbit.report.text import json_safe

    print(json.dumps(json_safe(document), indent=2), file=file, flush=True)


def check_sources(output: Path, *sources: str | Path | None) -> None:
    """Refuse an output that is, or holds, what is read, also where it may be overwritten.

    Raises:
        FewbitError: It does.
    """
    for source in sources:
        if source is not None:
            check_apart(output, source)


def refuse_options(given: Mapping[str, bool], where: str) -> None:
    """Tell of options that would do nothing.

    Args:
        given: By name, whether the user gave it.
        where: Where they do nothing: "for an ONNX file".

    Raises:
        FewbitError: One was given.
    """
    names = [name for name, there in given.items() if there]
    if names:
        does, it = ("does", "it") if len(names) == 1 else ("do", "them")
        raise FewbitError(f"{' and '.join(names)} {does} nothing {where}; leave {it} out")


def check_page(page: Path, *sources: str | Path | None) -> None:
    """Refuse a page in place of what is read, or of anything that is no page; an older page may go.

    Raises:
        FewbitError: It is one.
    """
    check_sources(page, *sources)
    if page.resolve().is_file() and page.suffix.lower() not in (".html", ".htm"):
        raise FewbitError(f"{page} is there and is no page, so it stays as it is: choose a name that ends in .html")


def check_output(path: Path, *, folder: bool, overwrite: bool) -> None:
    """Refuse an output that cannot be written before minutes are spent on it.

    Args:
        path: What is to be written.
        folder: Whether it is a folder or a file.
        overwrite: Whether it may replace what is there.

    Raises:
        FewbitError: It exists and may not be overwritten, or something of the other kind is there.
    """
    if path.is_dir() != folder and path.exists():
        raise FewbitError(f"{path} is a {'file' if folder else 'folder'}; name another output")
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not overwrite:
        raise FewbitError(f"{path} exists already; choose another output or add --overwrite")


def _print_result(session: Session, stdout: TextIO) -> None:
    if session.as_json:
        print_json(session.document or {}, stdout)
    elif session.shown:
        from rich.console import Console

        console = Console(file=stdout)
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console.width = 240  # a file or a pipe has no width to respect
        for part in session.shown:
            console.print(part)
        stdout.flush()


def _discard(stdout: TextIO) -> None:
    """Point stdout at nothing, so that Python's last flush does not complain about the closed pipe."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
