"""Low-bit linear layers against the peers: the shapes and bits of the kernels' goals.

``--cases`` picks some, so that a shared machine is quiet for short; results of earlier runs with as many threads on
the same instruction set are kept and shown together. Every contender runs once on each of its copies before anything
is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS, markdown_table, write

from fewbit.bench import contenders, peers, race
from fewbit.bench.case import Case, Run
from fewbit.bench.machine import Limits, limits_document, measure_limits
from fewbit.kernels import dispatch

CASES = {
    "int4-m1": (1, 4, 128), "int4-g32-m1": (1, 4, 32), "int4-m4": (4, 4, 128), "int4-m16": (16, 4, 128),
    "int4-m512": (512, 4, 128), "int8-m1": (1, 8, 0), "int8-m16": (16, 8, 0), "int8-m128": (128, 8, 0),
    "int8-m512": (512, 8, 0), "int8-m512-768": (512, 8, 0), "int3-m1": (1, 3, 128), "int2-m1": (1, 2, 128),
}  # fmt: skip
SIZES = {"int8-m512-768": (768, 3072)}  # inputs and outputs where not:
SIZE = (4096, 4096)


def run(name: str, footprint: int, rounds: int, most: Limits | None, only: list[str] | None) -> list[dict[str, Any]]:
    (m, bits, group), (k, n) = CASES[name], SIZES.get(name, SIZE)
    case = Case(m, k, n, bits, group, footprint=footprint)
    found, missing = peers.gather(case, only)
    found += contenders.own(case)
    if bits in (2, 3):  # what fewer bits save is shown beside 4
        found += contenders.own(Case(m, k, n, 4, group, footprint=footprint))
    rows = race.race(case, found, most, rounds if m < 100 else 3)
    for reason in missing.items():
        print("not raced:", *reason)
    return [{"case": name, **row.document()} for row in rows]


def cpu_seconds(run: Run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [
            row["shape"], row["weights"], row["name"], f"{row['ms']:.3f}", f"{row['ratio']:.2f}",
            f"{row['against_best']:.2f}", f"{row['gigabytes']:.1f}", f"{row['gigaops']:.0f}",
            "" if row["fraction"] is None else f"{100 * row['fraction']:.0f}%",
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table(
        ["M×K×N", "weights", "", "ms", "× torch FP32", "× best peer", "GB/s", "GOP/s", "of the limit"], cells, left=3
    )


SEVERAL_RUNS = (
    " That was the last run, of a part of the cases; a case's rows are of one run, and their share of the limit is "
    "that of their own run's limits, which differ."
)


def limit_sentence(most: Limits | None, whole: bool) -> str:
    if most is None:
        return ""
    return (
        f" The machine's own limits, measured: {most.read / 1e9:.1f} GB/s read, {most.float32 / 1e9:.0f} GFLOP/s, "
        f"int8 {most.int8 / 1e9:.0f} GOP/s on vectors and {most.tiles / 1e9:.0f} on tiles."
        f"{'' if whole else SEVERAL_RUNS}"
    )


@dataclass(frozen=True)
class Goal:
    """The fastest of fewbit's layers in a case against the fastest of some others: at least so many times as fast."""

    case: str
    least: float
    against: str = ""  # part of the others' names, or all that are not fewbit's
    threads: int = 0  # 0 for any

    def line(self, rows: list[dict[str, Any]], threads: int) -> str | None:
        """A sentence, or None where the case was not run or the goal is not for so many threads."""
        here = [row for row in rows if row["case"] == self.case]
        mine = [row for row in here if row["name"].startswith(f"fewbit W{CASES[self.case][1]}A")]
        own_too = self.against.startswith("fewbit")
        found = [row for row in here if self.against in row["name"] and row["name"].startswith("fewbit") == own_too]
        if not mine or not found or self.threads not in (0, threads):
            return None
        own, other = min(mine, key=lambda row: row["ms"]), min(found, key=lambda row: row["ms"])
        ratio = other["ms"] / own["ms"]
        verdict = "held" if ratio >= self.least else "**missed**"
        return (
            f"- {self.case}: {own['name']} {own['ms']:.3f} ms is {ratio:.2f} times {other['name']} "
            f"(goal {self.least}): {verdict}"
        )


GOALS = [
    Goal("int4-m1", 1.15), Goal("int4-g32-m1", 1.4, "ONNX Runtime int4"), Goal("int4-m16", 1.15, "OpenVINO int4, dyn"),
    Goal("int4-m512", 1.1, "OpenVINO int4, dyn"), Goal("int8-m1", 1.15, "torch.ao", threads=2),
    Goal("int8-m16", 1.2), Goal("int8-m128", 0.98, "oneDNN"), Goal("int8-m512", 0.98, "oneDNN"),
    Goal("int8-m512-768", 0.98, "oneDNN"), Goal("int3-m1", 1.2, "fewbit W4A8"), Goal("int2-m1", 1.5, "fewbit W4A8"),
]  # fmt: skip


def bandwidth_lines(rows: list[dict[str, Any]], threads: int) -> list[str]:
    """What is asked of M = 1 against the memory: 85% of a read with one thread at 4 bits, 26 GB/s with two at 8."""
    lines = []
    for row in (row for row in rows if row["name"].startswith("fewbit W4A8") and row["case"] == "int4-m1"):
        if threads == 1 and row["fraction"] is not None:
            verdict = "held" if row["fraction"] >= 0.85 else "**missed**"
            lines.append(f"- int4-m1: {100 * row['fraction']:.0f}% of a plain read (goal 85%): {verdict}")
    for row in (row for row in rows if row["name"].startswith("fewbit W8A8") and row["case"] == "int8-m1"):
        if threads == 2:
            verdict = "held" if row["gigabytes"] >= 26 else "missed"
            lines.append(f"- int8-m1: {row['gigabytes']:.1f} GB/s of weights (goal 26, or the one above): {verdict}")
    return lines


def verdicts(rows: list[dict[str, Any]], threads: int) -> str:
    lines = [line for goal in GOALS if (line := goal.line(rows, threads)) is not None]
    return "\n".join(lines + bandwidth_lines(rows, threads))


def earlier(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--megabytes", type=int, default=256, help="weights to walk through")
    parser.add_argument("--peers", nargs="+", default=None)
    parser.add_argument(
        "--cpu-time", action="store_true", help="for a busy machine: the process's CPU time, not the wall's"
    )
    arguments = parser.parse_args()
    if arguments.cpu_time:
        race._seconds = cpu_seconds
    torch.set_num_threads(arguments.threads)
    name = f"linear_lowbit_{arguments.threads}t{'_cpu' if arguments.cpu_time else ''}_{dispatch.backend()}"
    most, rows = None if arguments.cpu_time else measure_limits(), earlier(RESULTS / f"{name}.json")
    for case in arguments.cases:
        new = run(case, arguments.megabytes << 20, arguments.rounds, most, arguments.peers)
        rows = [row for row in rows if row["case"] != case] + new
        print(table(new), flush=True)
        gc.collect()
    rows.sort(key=lambda row: (list(CASES).index(row["case"]), row["ms"]))
    clock = "CPU time of the process" if arguments.cpu_time else "wall time"
    limits = limit_sentence(most, set(arguments.cases) == set(CASES))
    text = (
        f"# Low-bit linear layers, {arguments.threads} thread{'s' if arguments.threads > 1 else ''}\n\n"
        f"Medians of interleaved calls, {clock}; every contender walks through {arguments.megabytes} MiB of weights."
        f"{limits}\n\n{table(rows)}\n\nAgainst the goals:\n\n{verdicts(rows, arguments.threads)}"
    )
    write(name, text, {"limits": limits_document(most), "rows": rows})


if __name__ == "__main__":
    main()
