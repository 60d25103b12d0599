"""``fewbit bench``."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from fewbit.cli.options import AsJson
from fewbit.cli.session import Session, running
from fewbit.errors import FewbitError
from fewbit.wording import counted

if TYPE_CHECKING:
    from rich.table import Table

    from fewbit.bench.case import Case
    from fewbit.bench.machine import Limits
    from fewbit.bench.passes import PassRow
    from fewbit.bench.race import Row

_SHAPES = ("1x4096x4096", "16x4096x4096", "256x4096x4096")
_BITS = (4, 8)
_MOST, _MOST_BYTES = 999_999, 4 << 30


def bench(
    info: Annotated[
        bool, typer.Option("--info", help="Only tell the processor's features and the kernels in use.")
    ] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape", metavar="MxKxN", help="A product to race on; repeatable.", show_default="three of 4096"
        ),
    ] = None,
    bits: Annotated[
        list[int] | None,
        typer.Option("--bits", min=2, max=8, help="Bits of a weight; repeatable.", show_default="4, 8"),
    ] = None,
    group: Annotated[int, typer.Option("--group", min=0, help="Group of weights below 8 bits; 0 for channels.")] = 128,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=os.cpu_count() or 1, help="Threads of everyone.", show_default="torch's"),
    ] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Race other installed packages too.")] = True,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of everyone.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Race fewbit's kernels against other packages and against this machine's own limits."""
    with running(as_json) as session:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        if info:
            show_info(session)
        else:
            run_bench(session, list(shape or _SHAPES), list(bits or _BITS), group, peers, rounds)


def show_info(session: Session) -> None:
    """The machine and what the kernels run on."""
    from fewbit.bench.machine import info
    from fewbit.report.table import plain_table

    document = info()
    table = plain_table("this machine", "", "")
    for key, value in document["machine"].items():
        table.add_row(key, str(value))
    table.add_row("features", " ".join(document["features"]) or "unknown")
    table.add_row("instruction sets", " ".join(document["instruction sets"]))
    table.add_row("FEWBIT_ISA", document["forced"] or "not set: the best")
    for family, choice in document["kernels"].items():
        table.add_row(family, choice)
    table.columns[1].justify = "left"
    session.result(document, table)


def run_bench(session: Session, shapes: list[str], bits: list[int], group: int, with_peers: bool, rounds: int) -> None:
    """Measure the limits, race every case, and the passes of quantizing.

    Raises:
        FewbitError: A shape cannot be read.
    """
    from rich.text import Text

    from fewbit.bench.machine import footprint, limits_document, machine, measure_limits
    from fewbit.bench.passes import race_passes

    cases = [_case(text, width, group, footprint()) for width in bits for text in shapes]
    session.progress("limits", 0, 1)
    limits = measure_limits()
    session.progress("limits", 1, 1)
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for one, case in enumerate(cases):
        session.progress("products", one, len(cases))
        found, without = _race(case, limits, with_peers, rounds)
        rows, missing = rows + found, {**missing, **without}
    session.progress("products", len(cases), len(cases))
    passes = race_passes(rounds=rounds, progress=lambda done, total: session.progress("passes", done, total))
    document = {
        "machine": machine(),
        "limits": limits_document(limits),
        "products": [row.document() for row in rows],
        "passes": [vars(row) for row in passes],
        "missing": missing,
    }
    notes = [Text(f"{name}: {why}") for name, why in missing.items()]  # no markup: [bench] is an extra
    session.result(document, *_tables(rows, limits), _pass_table(passes), *notes)


def _race(case: Case, limits: Limits | None, with_peers: bool, rounds: int) -> tuple[list[Row], dict[str, str]]:
    from fewbit.bench import peers
    from fewbit.bench.contenders import own
    from fewbit.bench.race import race

    found, missing = peers.gather(case, None if with_peers else [])
    return race(case, own(case) + found, limits, rounds), missing


def _case(text: str, bits: int, group: int, footprint: int) -> Case:
    from fewbit.bench.case import Case

    match = re.fullmatch(r"(\d+)[xX×](\d+)[xX×](\d+)", text)
    sizes = [int(part[:9]) for part in match.groups()] if match else []
    if 0 in sizes or not sizes:
        raise FewbitError(f"--shape takes M, K and N, such as 16x4096x4096, not {text!r}")
    if max(sizes) > _MOST or 4 * sizes[1] * sizes[2] > _MOST_BYTES:
        raise FewbitError(f"--shape {text} is too large: M, K and N go up to {_MOST}, a float32 weight up to 4 GiB")
    m, k, n = sizes
    group = 0 if bits == 8 else group
    if group and k % group:
        raise FewbitError(f"--shape {text}: K is no multiple of the group, {group}; choose another --group")
    # Of many rows the arithmetic decides: two copies do, and making more would take most of the time.
    return Case(m, k, n, bits, group, footprint if m < 64 else 0)


def _tables(rows: list[Row], limits: Limits | None) -> list[Table]:
    """A table a case; the share of the limit in percent."""
    from fewbit.report.table import plain_table

    tables: dict[tuple[str, str], Table] = {}
    for row in rows:
        key = (row.weights, row.shape)
        if key not in tables:
            tables[key] = plain_table(
                f"{row.weights}, {row.shape}", "", "ms", "× torch FP32", "× best peer", "GB/s", "GOP/s", "of the limit"
            )
        share = "" if row.fraction is None else f"{100 * row.fraction:.0f}%"
        numbers = (f"{row.ms:.3f}", f"{row.ratio:.2f}", f"{row.against_best:.2f}", f"{row.gigabytes:.1f}")
        tables[key].add_row(row.name, *numbers, f"{row.gigaops:.0f}", share)
    if limits is not None and tables:
        list(tables.values())[-1].caption = (
            f"limits with {counted(limits.threads, 'thread')}: reads {1e-9 * limits.read:.1f} GB/s, "
            f"int8 {1e-9 * limits.best_int8:.0f} GOP/s, float32 {1e-9 * limits.float32:.0f} GFLOP/s"
        )
    return list(tables.values())


def _pass_table(rows: list[PassRow]) -> Table:
    from fewbit.report.table import plain_table

    table = plain_table("quantize a float32 weight 4096×4096 to int4 g128, packed", "", "ms", "GB/s", "× best peer")
    for row in rows:
        table.add_row(row.name, f"{row.ms:.1f}", f"{row.gigabytes:.1f}", f"{row.against_best:.2f}")
    return table
