"""Low-bit linear layers against the peers: the shapes and bits of the kernels' goals.

``--cases`` picks some, so that a shared machine is quiet for short; results of earlier runs with as many threads are
kept and shown together. Every contender runs once on each of its copies before anything is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import torch
from _results import RESULTS, markdown_table, write

from fewbit.bench import contenders, peers, race
from fewbit.bench.case import Case, Run
from fewbit.bench.machine import Limits, limits_document, measure_limits

CASES = {
    "int4-m1": (1, 4, 128), "int4-g32-m1": (1, 4, 32), "int4-m4": (4, 4, 128), "int4-m16": (16, 4, 128),
    "int4-m512": (512, 4, 128), "int8-m1": (1, 8, 0), "int8-m16": (16, 8, 0), "int8-m128": (128, 8, 0),
    "int8-m512": (512, 8, 0), "int3-m1": (1, 3, 128), "int2-m1": (1, 2, 128),
}  # fmt: skip
SIZE = 4096  # inputs and outputs


def run(name: str, footprint: int, rounds: int, most: Limits | None, only: list[str] | None) -> list[dict[str, Any]]:
    m, bits, group = CASES[name]
    case = Case(m, SIZE, SIZE, bits, group, footprint=footprint)
    found, missing = peers.gather(case, only)
    found += contenders.own(case)
    if bits in (2, 3):  # what fewer bits save is shown beside 4
        found += contenders.own(Case(m, SIZE, SIZE, 4, group, footprint=footprint))
    with torch.inference_mode():
        for contender in found:
            for copy in contender.copies:
                copy()
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


def limit_sentence(most: Limits | None) -> str:
    if most is None:
        return ""
    return (
        f" The machine's own limits, measured: {most.read / 1e9:.1f} GB/s read, {most.float32 / 1e9:.0f} GFLOP/s, "
        f"int8 {most.int8 / 1e9:.0f} GOP/s on vectors and {most.tiles / 1e9:.0f} on tiles."
    )


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
    name = f"linear_lowbit_{arguments.threads}t{'_cpu' if arguments.cpu_time else ''}"
    most, rows = None if arguments.cpu_time else measure_limits(), earlier(RESULTS / f"{name}.json")
    for case in arguments.cases:
        new = run(case, arguments.megabytes << 20, arguments.rounds, most, arguments.peers)
        rows = [row for row in rows if row["case"] != case] + new
        print(table(new), flush=True)
        gc.collect()
    rows.sort(key=lambda row: (list(CASES).index(row["case"]), row["ms"]))
    clock = "CPU time of the process" if arguments.cpu_time else "wall time"
    text = (
        f"# Low-bit linear layers, {arguments.threads} thread{'s' if arguments.threads > 1 else ''}\n\n"
        f"Medians of interleaved calls, {clock}; every contender walks through {arguments.megabytes} MiB of weights."
        f"{limit_sentence(most)}\n\n" + table(rows)
    )
    write(name, text, {"limits": limits_document(most), "rows": rows})


if __name__ == "__main__":
    main()
