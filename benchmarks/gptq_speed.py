"""How long GPTQ takes beside llm-compressor: Gemma-3-270M, int4 in asymmetric groups of 128, same windows and threads.

    python benchmarks/gptq_speed.py [WINDOWS]

Each quantizes the decoder's linear layers once, with data that is tokenized already; loading the model does not count.
It needs llm-compressor (with its own requirements) beside what ``_gemma.py`` names.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import _gemma
import _gemma_peers
import gemma
import torch
from _results import markdown_table, write


def timed(name: str, quantize: Callable[[Any], object]) -> dict[str, Any]:
    """Seconds, on the clock and of the processor."""
    model = _gemma.float_model()
    start, processor = time.perf_counter(), time.process_time()
    quantize(model)
    row = {"name": name, "s": time.perf_counter() - start, "s of processor": time.process_time() - processor}
    print(row, flush=True)
    return row


def main(count: int = _gemma.CALIBRATION_WINDOWS) -> None:
    data = _gemma.calibration()[:count]
    ours = gemma.ours("gptq", "asym", "W4", windows=count)
    rows = [
        timed("fewbit gptq", ours.make),
        timed("llm-compressor GPTQ", lambda model: _gemma_peers.llm_compressor(model, 4, 128, False, data)),
    ]
    cells = [
        [
            row["name"],
            f"{row['s']:.0f}",
            f"{row['s of processor']:.0f}",
            f"{row['s of processor'] / rows[0]['s of processor']:.2f}",
        ]
        for row in rows
    ]
    threads = torch.get_num_threads()
    text = (
        f"# GPTQ of Gemma-3-270M's decoder, W4 g128 asym, {count} windows of 512 tokens, {threads} threads\n\n"
        + markdown_table(["", "s", "s of processor", "processor time beside fewbit's"], cells)
    )
    write("gptq_speed", text, {"windows": count, "threads": threads, "rows": rows})


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
