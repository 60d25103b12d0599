"""Estimators: how quantization is trained through. One a file; the file's name is the estimator's name.

Each module has ``weight_quantizer(matrix, spec, start, name)`` and ``input_quantizer(spec, start, name)``, which give a
:class:`~fewbit.train.quantizer.FakeQuantizer`. ``start`` is the scale and zero point of post-training quantization.
"""

from __future__ import annotations

from fewbit.plugins import Plugins

__all__ = ["get", "names"]

_PLUGINS = Plugins(__name__, "weight_quantizer", "estimator")
names, get = _PLUGINS.names, _PLUGINS.get
