"""What Python users call: ``fewbit.quantize("model.onnx", …)``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fewbit.calibrate.collect import Progress
from fewbit.errors import FewbitError
from fewbit.onnxgraph import file
from fewbit.onnxpipeline.result import OnnxResult
from fewbit.recipe import Recipe


def is_onnx(model: object) -> bool:
    """Whether something names an ONNX file."""
    return isinstance(model, str | Path) and str(model).lower().endswith(".onnx")


def quantize_onnx(
    model: Any,
    recipe: Recipe | str | Path,
    data: Iterable[Any] | None,
    output: str | Path | None,
    progress: Progress | None,
    **settings: Any,
) -> OnnxResult:
    """Quantize an ONNX file to a file; ``settings`` are those of :class:`Settings` that are not None.

    Raises:
        FewbitError: There is no output, a setting is unknown, or the model, recipe or data cannot be used.
    """
    file.check_installed()
    from fewbit.onnxpipeline.quantize import Settings, quantize_file

    if output is None:
        raise FewbitError(f'an ONNX file is quantized to a file: quantize("{model}", …, output="model.int8.onnx")')
    given = {name: value for name, value in settings.items() if value is not None}
    return quantize_file(model, recipe, data, output, Settings(**given), progress)
