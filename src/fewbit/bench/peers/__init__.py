"""The packages people would otherwise use: one a file, whose name is its name.

Each has ``contenders(case) -> list[Contender]`` and raises :class:`~fewbit.bench.case.PeerUnavailable` where it is not
installed or does not serve the case.
"""

from __future__ import annotations

import importlib
import pkgutil

from fewbit.bench.case import Case, Contender, PeerUnavailable

__all__ = ["gather", "names"]


def names() -> list[str]:
    """The peers there are."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__))


def gather(case: Case, only: list[str] | None = None) -> tuple[list[Contender], dict[str, str]]:
    """Everyone who can take part, and why the others cannot.

    Args:
        case: The product.
        only: Names of peers to ask; all by default. ``torch`` is always asked, as ratios are to it.
    """
    found: list[Contender] = []
    missing: dict[str, str] = {}
    for name in names():
        if only is not None and name not in (*only, "torch"):
            continue
        try:
            found += importlib.import_module(f"{__name__}.{name}").contenders(case)
        except PeerUnavailable as reason:
            missing[name] = str(reason)
        except Exception as error:  # noqa: BLE001 a peer's failure must not end the race of the others
            missing[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return found, missing
