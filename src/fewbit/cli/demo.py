"""``fewbit demo``."""

from __future__ import annotations

from fewbit.cli.session import Session


def run(session: Session, quick: bool) -> None:
    """Run the demo.

    Raises:
        MissingExtraError: Packages of fewbit[demo] are not installed; the message names them.
    """
    from fewbit.demo.run import measure

    result = measure(quick, session.progress)
    shown = [] if session.as_json else [part for table in result.tables() for part in (table, "")]
    session.result(result.document(), *shown)
