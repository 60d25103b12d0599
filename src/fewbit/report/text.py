"""Numbers as people read them, and as JSON writes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

_UNITS = ("KiB", "MiB", "GiB", "TiB")


def bytes_text(count: int) -> str:
    """``"512 B"``, ``"4.40 MiB"``: three digits and the binary unit."""
    value, unit = float(count), "B"
    for larger in _UNITS:
        if value < 1000:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{_three_digits(value)} {unit}"


def seconds_text(seconds: float) -> str:
    """``"12.3 ms"``, ``"850 µs"``, ``"1.20 s"``."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{_three_digits(seconds * factor)} {unit}"
    raise AssertionError("the last unit always fits")


def decibels_text(value: float | None) -> str:
    """``"24.5"``; ``"exact"`` for no error at all, ``"–"`` where there is nothing to tell."""
    if value is None:
        return "–"
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f}"


def sqnr_text(value: float) -> str:
    """``"24.5 dB"``, or ``"exact"``."""
    return "exact" if value == math.inf else f"{decibels_text(value)} dB"


def percent_text(fraction: float | None) -> str:
    """``"98.4 %"``; small shares keep two digits, ``"0.012 %"``."""
    if fraction is None:
        return "–"
    percent = fraction * 100
    return f"{percent:.2g} %" if 0 < percent < 1 else f"{percent:.1f} %"


def count_text(count: int) -> str:
    """``"4,652,008"``."""
    return f"{count:,}"


def times_text(factor: float) -> str:
    """``"3.97×"``."""
    return f"{_three_digits(factor)}×"


def smaller_text(before: int, after: int) -> str:
    """``"3.97× smaller"``, or ``"1.20× larger"``: what became of a size."""
    if before < after:
        return f"{times_text(after / max(before, 1))} larger"
    return f"{times_text(before / max(after, 1))} smaller"


def json_safe(value: Any) -> Any:
    """`value` with every float that JSON cannot write as a string, tuples as lists and paths as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
