"""The stories told about ONNX models: quantize a file, keep in float what is not faster, compare two files, inspect
one."""

from __future__ import annotations

from fewbit.onnxpipeline.result import OnnxLayer, OnnxResult

__all__ = ["OnnxLayer", "OnnxResult"]
