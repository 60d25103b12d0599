"""The gradients of the papers, value by value in NumPy's float64: nothing of fewbit's own is used."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One block: values, upstream gradient, step, zero point, the ends of the codes."""

    x: Array
    g: Array
    s: float
    z: float
    qmin: float
    qmax: float

    def value(self) -> Array:
        """``s·(clip(round(x/s) + z) − z)``."""
        return self.s * (np.clip(np.rint(self.x / self.s) + self.z, self.qmin, self.qmax) - self.z)

    def outside(self) -> tuple[Array, Array]:
        """Whether ``x/s`` lies at or below, at or above the range."""
        ratio = self.x / self.s + self.z
        return ratio <= self.qmin, ratio >= self.qmax

    def to_input(self) -> Array:
        """1 inside, 0 outside (LSQ, equation 5)."""
        below, above = self.outside()
        return np.where(below | above, 0.0, self.g)

    def to_step(self) -> float:
        """LSQ, equation 3, with the clips counted from the zero point."""
        below, above = self.outside()
        inside = np.rint(self.x / self.s) - self.x / self.s
        each = np.where(below, self.qmin - self.z, np.where(above, self.qmax - self.z, inside))
        return float((self.g * each).sum())

    def to_step_with_offset(self) -> float:
        """LSQ+, equation 6: the clips are Q_N and Q_P."""
        below, above = self.outside()
        inside = np.rint(self.x / self.s) - self.x / self.s
        return float((self.g * np.where(below, self.qmin, np.where(above, self.qmax, inside))).sum())

    def to_offset(self) -> float:
        """LSQ+, equation 7: 0 inside, 1 outside."""
        below, above = self.outside()
        return float(self.g[below | above].sum())

    def to_clip(self) -> float:
        """PACT, equation 3: 1 above; below the lower end, which moves with the clip."""
        below, above = self.outside()
        return float(self.g[above].sum() + self.g[below].sum() * (self.qmin - self.z) / (self.qmax - self.z))
