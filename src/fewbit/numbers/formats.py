"""All number formats by name. Each family is one file with ``parse`` and ``known``."""

from __future__ import annotations

from fewbit.errors import FewbitError
from fewbit.numbers import codebook, integer, minifloat
from fewbit.numbers.format import Format, bytes_per_value

__all__ = ["Format", "all_formats", "bytes_per_value", "get_format", "table"]


def get_format(name: str) -> Format:
    """The format of a name such as ``int8``, ``fp8_e4m3`` or ``nf4``.

    Raises:
        FewbitError: There is no such format; the message lists what there is.
    """
    found = integer.parse(name) or minifloat.parse(name) or codebook.parse(name)
    if found is None:
        names = ", ".join(fmt.name for fmt in all_formats())
        raise FewbitError(f"no number format is called {name!r}; there are {names}")
    return found


def all_formats() -> list[Format]:
    """Every named format."""
    return [*minifloat.known(), *integer.known(), *codebook.known()]


def table() -> list[dict[str, str | int | float]]:
    """One row a format: name, bits, smallest and largest value, smallest step, bytes a value, use."""
    return [
        {
            "format": fmt.name,
            "bits": fmt.bits,
            "min": fmt.qmin,
            "max": fmt.qmax,
            "step": fmt.smallest_step,
            "bytes": bytes_per_value(fmt),
            "use": fmt.use,
        }
        for fmt in all_formats()
    ]
