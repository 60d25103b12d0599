"""Where benchmark results go, and what every one of them says about the machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewbit.bench.machine import machine

RESULTS = Path(__file__).parent / "results"


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
