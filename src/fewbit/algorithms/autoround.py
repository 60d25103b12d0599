"""AutoRound: rounding and scales learned by signed gradient descent, block by block (arXiv 2309.05516).

Each weight starts where GPTQ leaves it, or where rounding to nearest does. The pipeline then holds every block to what
it put out in float (:mod:`fewbit.sequential.reconstruct`), which needs the block and not only its statistics; on a
single matrix this is the start alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fewbit.algorithms import gptq, required, rtn
from fewbit.algorithms._reconstruction import Schedule
from fewbit.calibrate.gram import Statistics
from fewbit.errors import FewbitError
from fewbit.numbers.qtensor import QTensor
from fewbit.numbers.spec import QSpec

NEEDS: tuple[str, ...] = ("gram",)
#: What the pipeline does with every block afterwards: scales alone, which little data suffices for; then codes as well.
RECONSTRUCTS = (
    Schedule(steps=60, batch=2, rounding=0, scales=1e-3),
    Schedule(steps=100, batch=2, rounding=0.5, scales=1e-3),
)
_STARTS = ("gptq", "rtn")


@dataclass(frozen=True)
class Options:
    """Where learning starts.

    Attributes:
        start: ``"gptq"`` or ``"rtn"``, to nearest with the ranges that lose less.
    """

    start: str = "gptq"


def quantize_weight(
    weight: Tensor,
    spec: QSpec,
    options: Options | None = None,
    name: str = "weight",
    statistics: Statistics | None = None,
) -> QTensor:
    """The start of learning for a matrix ``[out, K]``.

    Args:
        weight: Floating matrix.
        spec: Any format; codes of integer formats are learned, of others the scales.
        options: See :class:`Options`.
        name: Named in errors.
        statistics: Of the layer's input.

    Raises:
        FewbitError: There are no statistics; NaN, infinity or no values; an unknown start.
    """
    options = options or Options()
    if options.start not in _STARTS:
        raise FewbitError(f"autoround starts from {' or '.join(_STARTS)}, not {options.start!r}")
    required(statistics, "autoround", name)
    if options.start == "rtn":
        return rtn.quantize_weight(weight, spec, None, name)
    return gptq.quantize_weight(weight, spec, None, name, statistics)
