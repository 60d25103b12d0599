"""Algorithms that choose codes for a weight. One a file; the file's name is the algorithm's name.

Each module has

- ``Options``, a frozen dataclass whose defaults are right;
- ``NEEDS``, what it makes use of: ``()``, ``("gram",)`` or ``("gram", "held_back")``; the first it cannot do without;
- ``quantize_weight(weight, spec, options, name, statistics) -> QTensor`` on a matrix ``[out, K]``.

What an algorithm lowers is the change D of the layer's output where it needs data, ``tr(D G Dᵀ)`` with the
:class:`~fewbit.calibrate.gram.Gram` of the layer's input, and ``‖D‖²`` where it does not, unless it defines an
``objective(change)`` of its own.
"""

from __future__ import annotations

from fewbit.calibrate.gram import Statistics
from fewbit.errors import FewbitError
from fewbit.plugins import Plugins

__all__ = ["get", "names", "required"]

_PLUGINS = Plugins(__name__, "quantize_weight", "algorithm")
names, get = _PLUGINS.names, _PLUGINS.get


def required(statistics: Statistics | None, algorithm: str, name: str) -> Statistics:
    """The statistics that an algorithm needs.

    Raises:
        FewbitError: There are none, or they saw no data; the message names the layer and the remedy.
    """
    if statistics is None:
        raise FewbitError(f"{name}: {algorithm} needs calibration data; pass data, or an algorithm without: rtn or hqq")
    if statistics.gram.count == 0:
        raise FewbitError(
            f"{name} saw no calibration data; pass batches that reach it, or an algorithm without data: rtn or hqq"
        )
    return statistics
