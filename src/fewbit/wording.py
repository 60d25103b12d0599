"""Words that sentences for the user share."""

from __future__ import annotations


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 layer``, ``2 layers``.

    Args:
        count: How many.
        one: What one of them is called.
        many: What several are; None for ``one`` and an s.
    """
    return f"{count} {one if count == 1 else many or f'{one}s'}"
