"""What quantizing a weight costs: round to nearest in int4 groups, packing included, by fewbit and by others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.algorithms import rtn
from fewbit.bench.case import Run
from fewbit.bench.race import in_turn
from fewbit.kernels.weights import PackedMatrix
from fewbit.numbers.spec import QSpec


@dataclass(frozen=True)
class PassRow:
    """One way to quantize the weight.

    Attributes:
        name: Who does it.
        ms: Median milliseconds.
        gigabytes: Gigabytes of float weights a second.
        against_best: Times the fastest that is not fewbit.
    """

    name: str
    ms: float
    gigabytes: float
    against_best: float


def race_passes(
    size: int = 4096, group: int = 128, rounds: int = 5, progress: Callable[[int, int], None] | None = None
) -> list[PassRow]:
    """Quantize a float32 weight ``[size, size]`` to int4, symmetric, in groups; fastest first."""
    weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    contenders = {name: [run] for name, run in _contenders(weight, group).items()}
    medians = in_turn(contenders, rounds, calls=1, progress=progress)
    best = min(seconds for name, seconds in medians.items() if not name.startswith("fewbit"))
    rows = [
        PassRow(name, 1e3 * seconds, 1e-9 * weight.nbytes / seconds, best / seconds)
        for name, seconds in medians.items()
    ]
    return sorted(rows, key=lambda row: row.ms)


def _contenders(weight: Tensor, group: int) -> dict[str, Run]:
    spec = QSpec.parse(f"int4/g{group}/sym/f16")

    def own(calibrator: str) -> Run:
        options = rtn.Options(calibrator)
        return lambda: PackedMatrix.pack(rtn.quantize_weight(weight, spec, options))

    found: dict[str, Run] = {
        "fewbit min-max": own("minmax"),
        "fewbit MSE, 80 clips": own("mse"),
        "torch": lambda: _torch(weight, group),
        "numpy": lambda: _numpy(weight.numpy(), group),
    }
    try:
        ort = importlib.import_module("onnxruntime.capi._pybind_state")
        found["ONNX Runtime C++"] = _onnxruntime(ort, weight, group)
    except (ImportError, AttributeError):
        pass
    return found


def _torch(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """As one writes it with torch's operators."""
    blocks = weight.reshape(-1, group)
    scale = blocks.abs().amax(1, keepdim=True) / 7
    codes = torch.round(blocks / scale).clamp_(-8, 7).to(torch.int8) & 15
    return codes[:, ::2] | (codes[:, 1::2] << 4), scale.to(torch.float16)


def _numpy(weight: np.ndarray[Any, Any], group: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """As one writes it with NumPy."""
    blocks = weight.reshape(-1, group)
    scale = np.abs(blocks).max(1, keepdims=True) / 7
    codes = np.clip(np.rint(blocks / scale), -8, 7).astype(np.int8) & 15
    return codes[:, ::2] | (codes[:, 1::2] << 4), scale.astype(np.float16)


def _onnxruntime(ort: Any, weight: Tensor, group: int) -> Run:
    rows, columns = weight.shape
    blocks = columns // group
    source = np.ascontiguousarray(weight.numpy().T)  # [K, N]
    packed = np.zeros((rows, blocks, group // 2), np.uint8)
    scale, zero_point = np.zeros(rows * blocks, np.float32), np.zeros(rows * ((blocks + 1) // 2), np.uint8)
    quantize = ort.quantize_matmul_4bits
    return lambda: quantize(packed, source, scale, zero_point, group, rows, columns, True)
