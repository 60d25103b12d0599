"""Where benchmark results go, and what every one of them says about the machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fewbit.kernels import dispatch

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores, threads, versions, date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction set": dispatch.backend(),
        "fewbit": metadata.version("fewbit"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns are text and the others numbers."""
    rule = ["---"] * left + ["--:"] * (len(columns) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, rule, *rows])


def write(name: str, text: str, data: dict[str, Any]) -> None:
    """Write ``results/NAME.md`` and ``NAME.json``, the machine added to both, and print the text."""
    where = machine()
    about = ", ".join(f"{key} {value}" for key, value in where.items())
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(f"{text}\n\n{about}\n", encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": where, **data}, indent=2) + "\n", encoding="utf-8")
    print(text)
