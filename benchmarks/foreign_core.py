"""What is left of the speed when another program uses a core.

An int4 layer 4096×4096 at M = 1 with two threads, and its peers: alone, and beside ``python -c "while True: pass"``.
fewbit's threads take small pieces as cores come free and nobody spins at a barrier; a static split waits for the
slower half.

    python benchmarks/foreign_core.py               # half a minute on 2 idle cores
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch
from _results import markdown_table, write

from fewbit.bench import peers
from fewbit.bench.case import Case
from fewbit.bench.contenders import own
from fewbit.bench.race import in_turn

BAR = 0.5  # of the quiet speed
SETTLE = 1.0  # seconds until the scheduler knows the other program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    case = Case(1, 4096, 4096, 4, 128)
    found, missing = peers.gather(case)
    contenders = {c.name: c.copies for c in own(case) + found if c.unit == "int8"}
    alone = in_turn(contenders, rounds, calls=10)
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(SETTLE)
        beside = in_turn(contenders, rounds, calls=10)
    finally:
        other.kill()
        other.wait()
    rows, data = [], []
    for name in sorted(alone, key=lambda n: alone[n]):
        share = alone[name] / beside[name]
        rows.append([name, f"{1e3 * alone[name]:.3f}", f"{1e3 * beside[name]:.3f}", f"{100 * share:.0f}%"])
        data.append({"name": name, "alone_ms": 1e3 * alone[name], "beside_ms": 1e3 * beside[name], "share": share})
    kept = max(row["share"] for row in data if str(row["name"]).startswith("fewbit"))  # type: ignore[type-var]
    least = min(row["share"] for row in data if str(row["name"]).startswith("fewbit"))  # type: ignore[type-var]
    verdict = "held" if least >= BAR else "**missed**"
    text = (
        "# With a foreign busy core\n\n"
        f"int4 g128, 1×4096×4096, two threads on a machine of two cores, medians of {rounds} turns of 10 calls.\n\n"
        + markdown_table(["", "alone, ms", "beside a busy program, ms", "speed kept"], rows)
        + f"\n\nThe bar, at least {100 * BAR:.0f}% of the quiet speed for fewbit: {100 * least:.0f}% to "
        f"{100 * kept:.0f}%, {verdict}.\n"
        + "".join(f"\n{name} did not take part: {why}" for name, why in missing.items())
    )
    write("foreign_core", text, {"rows": data})


if __name__ == "__main__":
    main()
