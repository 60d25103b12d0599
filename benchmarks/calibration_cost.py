"""What calibration costs: time and memory of every calibrator over 100 batches of 1x64x112x112.

The time of a calibrator is that of all its updates and one solve. All calibrators and torch's HistogramObserver
take turns batch by batch, in the same process and on the same tensors, so that whatever else the machine does falls
on all of them; a round gives one total each, and the table shows the median round. "All, shared" is one statistic
for each distinct ``statistic_key`` and the solves of all calibrators: what one pass that serves them all costs.

Memory is the highest resident size of a fresh process that makes the batches one by one and calibrates on them,
less that of the same process making the batches alone, read from Linux (``VmHWM``): it counts every allocation, of
torch and of the kernels alike. ``HistogramObserver`` is measured in the same way.

    python benchmarks/calibration_cost.py            # about a minute on 2 idle cores

writes ``benchmarks/results/calibration_cost.md`` and ``.json``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from _results import write
from torch import Tensor
from torch.ao.quantization import HistogramObserver

from fewbit import calibrate
from fewbit.calibrate.statistic import Statistic
from fewbit.numbers.spec import QSpec

SHAPE, BATCHES = (1, 64, 112, 112), 100
SPEC = QSpec.parse("uint8/tensor/asym")
KINDS = ("after ReLU", "two-sided")
OBSERVER, SHARED = "torch HistogramObserver", "all, shared"
BAR_RATIO, BAR_MIB, BAR_NAMES = 1.5, 64.0, ("entropy", "percentile")


class Contender(Protocol):
    """Something that watches batches and then gives a range."""

    def update(self, x: Tensor) -> None:
        """See one batch."""

    def solve(self) -> object:
        """The range, after all batches."""


class Calibrators:
    """Some of fewbit's calibrators on one pass: one statistic a key, one solve a calibrator."""

    def __init__(self, names: list[str]) -> None:
        self.modules = [calibrate.get(name) for name in names]
        self.statistics: dict[Hashable, Statistic] = {}
        for module in self.modules:
            options = module.Options()
            statistic = module.new_statistic(SPEC.granularity, options)
            self.statistics.setdefault(module.statistic_key(options), statistic)

    def update(self, x: Tensor) -> None:
        """Each statistic sees the batch once."""
        for statistic in self.statistics.values():
            statistic.update(x)

    def solve(self) -> object:
        """Each calibrator solves its statistic."""
        options = [module.Options() for module in self.modules]
        keys = [module.statistic_key(o) for module, o in zip(self.modules, options)]
        return [m.solve(self.statistics[k], SPEC, o) for m, k, o in zip(self.modules, keys, options)]


class Observer:
    """torch's HistogramObserver as it comes."""

    def __init__(self) -> None:
        self.observer = HistogramObserver()

    def update(self, x: Tensor) -> None:
        """An observer is a module that is called."""
        self.observer(x)

    def solve(self) -> object:
        """Scale and zero point."""
        return self.observer.calculate_qparams()


class Nothing:
    """Only makes the batches: the base of the memory."""

    def update(self, x: Tensor) -> None:
        """Look away."""

    def solve(self) -> object:
        """There is nothing to tell."""
        return None


def contenders() -> dict[str, Callable[[], Contender]]:
    found: dict[str, Callable[[], Contender]] = {OBSERVER: Observer}
    for name in calibrate.names():
        found[name] = lambda name=name: Calibrators([name])  # type: ignore[misc]
    found[SHARED] = lambda: Calibrators(calibrate.names())
    return found


def batches(kind: str) -> Iterator[Tensor]:
    """Channels of different scales, and a range that grows slowly over the batches."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(1, SHAPE[1], 1, 1, generator=generator) * 2
    for i in range(BATCHES):
        x = torch.randn(SHAPE, generator=generator) * scale * (1 + i / BATCHES)
        yield x.relu_() if kind == KINDS[0] else x


def one_round(kind: str) -> dict[str, float]:
    """Seconds of each contender, all updates and the solve."""
    made = {name: make() for name, make in contenders().items()}
    names = list(made)
    seconds = dict.fromkeys(names, 0.0)
    for i, x in enumerate(batches(kind)):
        turn = i % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            made[name].update(x)
            seconds[name] += time.perf_counter() - start
    for name in names:
        start = time.perf_counter()
        made[name].solve()
        seconds[name] += time.perf_counter() - start
    return seconds


def resident_peak() -> float:
    """Highest resident size of this process so far, MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024
    raise SystemExit("this kernel does not tell VmHWM")


def memory_here(name: str, kind: str) -> float:
    """MiB above the base, in this process, which must be fresh."""

    def run(contender: Contender) -> float:
        for x in batches(kind):
            contender.update(x)
        contender.solve()
        return resident_peak()

    base = run(Nothing())
    return run(contenders()[name]()) - base


def memory(name: str, kind: str) -> float:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--memory", name, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.strip().splitlines()[-1])


def measure(kind: str, rounds: int) -> list[dict[str, Any]]:
    one_round(kind)  # warms up allocators and kernels
    taken = [one_round(kind) for _ in range(rounds)]
    rows = []
    for name in taken[0]:
        totals = [seconds[name] for seconds in taken]
        ratios = [seconds[name] / seconds[OBSERVER] for seconds in taken]
        rows.append(
            {
                "data": kind,
                "calibrator": name,
                "ms": 1e3 * statistics.median(totals),
                "ms_least": 1e3 * min(totals),
                "ms_most": 1e3 * max(totals),
                "ratio": statistics.median(ratios),
                "mib": memory(name, kind),
            }
        )
        print(f"{kind:12s} {name:24s} {rows[-1]['ms']:8.1f} ms {rows[-1]['mib']:6.1f} MiB", file=sys.stderr)
    return rows


def markdown(rows: list[dict[str, Any]], rounds: int) -> str:
    lines = [
        "# What calibration costs",
        "",
        f"{BATCHES} batches of {'x'.join(map(str, SHAPE))} float32, `{SPEC}`: all updates and one solve.",
        f"Median of {rounds} interleaved rounds (least to most); memory above a process that only makes the data.",
        "",
        "| data | calibrator | ms | least to most | of HistogramObserver | MiB above the base |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        spread = f"{r['ms_least']:.0f} to {r['ms_most']:.0f}"
        lines.append(
            f"| {r['data']} | {r['calibrator']} | {r['ms']:.0f} | {spread} | {r['ratio']:.2f} | {r['mib']:.1f} |"
        )
    held = "held" if all(within_bar(r) for r in rows) else "**missed**"
    bar = f"at most {BAR_MIB:.0f} MiB above the base and {BAR_RATIO} of HistogramObserver's time"
    lines += ["", f"The bar for {' and '.join(BAR_NAMES)}: {bar}. It is {held}."]
    return "\n".join(lines)


def within_bar(row: dict[str, Any]) -> bool:
    return row["calibrator"] not in BAR_NAMES or (row["ratio"] <= BAR_RATIO and row["mib"] <= BAR_MIB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "DATA"), help="measure one in this process alone")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch")
    if arguments.memory:
        print(memory_here(*arguments.memory))
        return
    rows = [row for kind in KINDS for row in measure(kind, arguments.rounds)]
    write("calibration_cost", markdown(rows, arguments.rounds), {"rounds": arguments.rounds, "rows": rows})


if __name__ == "__main__":
    main()
