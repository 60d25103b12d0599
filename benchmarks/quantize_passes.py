"""What the passes of quantizing cost: rounding a weight, divergences of a histogram.

Contenders take turns in one process (``fewbit.bench.race.in_turn``), at one thread and at two.

    python benchmarks/quantize_passes.py            # about a minute on 2 idle cores
"""

from __future__ import annotations

import argparse

import torch
from _results import markdown_table, write

from fewbit.bench.case import Run
from fewbit.bench.machine import limits_document, measure_limits
from fewbit.bench.passes import race_passes
from fewbit.bench.race import in_turn
from fewbit.kernels import dispatch, reference_kl

BARS = {"fewbit min-max": 12.0, "fewbit MSE, 80 clips": 400.0}  # ms at two threads
BINS, LEVELS = 4096, 256


def divergences() -> dict[str, list[Run]]:
    counts = torch.randint(0, 50, (BINS,), generator=torch.Generator().manual_seed(0)).double()
    reach = torch.arange(LEVELS, BINS // 2 + 1)
    data = (counts, (BINS // 2 - reach).clamp(min=0), BINS // 2 + reach, LEVELS, 1e-4)
    return {"fewbit": [lambda: dispatch.kl_divergences(*data)], "torch": [lambda: reference_kl.kl_divergences(*data)]}


def measure(rounds: int) -> tuple[list[list[str]], list[list[str]], dict[str, object]]:
    weights, others, data = [], [], {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        passes = race_passes(rounds=rounds)
        weights += [
            [row.name, str(threads), f"{row.ms:.1f}", f"{row.gigabytes:.1f}", f"{row.against_best:.2f}"]
            for row in passes
        ]
        pair = {"KL divergences": in_turn(divergences(), rounds)}
        for name, times in pair.items():
            ours, theirs = times["fewbit"], times["torch"]
            others.append([name, str(threads), f"{1e3 * ours:.2f}", f"{1e3 * theirs:.2f}", f"{theirs / ours:.2f}"])
        data[str(threads)] = {
            "limits": limits_document(measure_limits()),
            "weights": [vars(row) for row in passes],
            "others": pair,
        }
    return weights, others, data


def verdict(data: dict[str, object]) -> str:
    rows = {row["name"]: row["ms"] for row in data["2"]["weights"]}  # type: ignore[index]
    words = []
    for name, bar in BARS.items():
        held = "held" if rows[name] <= bar else "**missed**"
        words.append(f"{name} at most {bar:.0f} ms at two threads: {rows[name]:.1f} ms, {held}.")
    return "Bars: " + " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    weights, others, data = measure(rounds)
    text = (
        "# The passes of quantizing\n\n"
        "A float32 weight 4096×4096 to int4 g128 with float16 scales, packing included. "
        f"Medians of {rounds} interleaved rounds.\n\n"
        + markdown_table(["", "threads", "ms", "GB/s", "× best peer"], weights)
        + f"\n\nThe KL divergences of all windows of a histogram of {BINS} bins at {LEVELS} levels.\n\n"
        + markdown_table(["", "threads", "fewbit ms", "torch ms", "ratio"], others)
        + "\n\n"
        + verdict(data)
    )
    write("quantize_passes", text, data)


if __name__ == "__main__":
    main()
