"""Calibration: choosing the range that the codes of a tensor cover.

A calibrator is a module of this package, and its file name is its name. It defines

- ``Options``, a frozen dataclass whose defaults are right;
- ``statistic_key(options)`` and ``new_statistic(granularity, options, name)``: what it has to know about the
  data. Calibrators whose keys are equal share one statistic, so that one pass over the data serves them all;
- ``solve(statistic, spec, options) -> Range``;
- if it can do better with all the data at hand, ``solve_tensor(x, spec, options, name) -> Range``.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

from torch import Tensor

from fewbit.calibrate.range import Range
from fewbit.numbers.spec import QSpec, as_spec
from fewbit.plugins import Plugins

__all__ = ["Range", "get", "names", "solve_tensor"]

_PLUGINS = Plugins(__name__, "solve", "calibrator")
names, get = _PLUGINS.names, _PLUGINS.get


def solve_tensor(
    calibrator: str | ModuleType, x: Tensor, spec: QSpec | str, options: Any = None, name: str = "tensor"
) -> Range:
    """The range of each block of a tensor at hand, such as a weight.

    Args:
        calibrator: A name or a module, see :func:`get`.
        x: Floating tensor of any shape.
        spec: The quantization that the range is for.
        options: The calibrator's ``Options``, by default its defaults.
        name: The tensor's name in errors.

    Returns:
        float32 ends of shape ``spec.granularity.scale_shape(x.shape)``.

    Raises:
        FewbitError: ``x`` is empty, not floating or not finite, or the calibrator does not serve this spec.
    """
    module = get(calibrator) if isinstance(calibrator, str) else calibrator
    spec, options = as_spec(spec), module.Options() if options is None else options
    if hasattr(module, "solve_tensor"):
        return cast(Range, module.solve_tensor(x, spec, options, name))
    statistic = module.new_statistic(spec.granularity, options, name)
    statistic.update(x)
    return cast(Range, module.solve(statistic, spec, options))
