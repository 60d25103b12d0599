"""torch itself: float32, bfloat16, and the low-bit kernels it ships."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.bench.case import Case, Contender, Run
from fewbit.kernels import dispatch, onednn


def contenders(case: Case) -> list[Contender]:
    """FP32 and BF16 always; for int4 groups torch's bfloat16 int4pack kernel (torchao's), for int8 fbgemm or oneDNN."""
    found = [_plain(case, torch.float32, "torch FP32", "float32"), _plain(case, torch.bfloat16, "torch BF16", "int8")]
    if case.bits == 4 and case.group:
        found.append(_int4pack(case))
    if case.bits == 8 and not case.group:
        found.append(_dynamic(case))
        if onednn.available():
            found.append(_onednn(case))
    return found


def _plain(case: Case, dtype: torch.dtype, name: str, unit: str) -> Contender:
    x, weight = case.x.to(dtype), case.weight.to(dtype)

    def run(w: Tensor) -> Run:
        return lambda: F.linear(x, w)

    copies = [run(weight.clone()) for _ in range(case.copies(weight.nbytes))]
    return Contender(name, copies, weight.nbytes, unit)


def _int4pack(case: Case) -> Contender:
    x = case.x.to(torch.bfloat16)
    codes, scale = case.rounded()
    steps = scale.squeeze(-1).t()  # [groups, N]; a code q stands for scale (q - 8) + 0
    scales = torch.stack([steps, torch.zeros_like(steps)], dim=-1).to(torch.bfloat16).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.reshape(case.n, case.k) + 8, 2)

    def run(w: Tensor) -> Run:
        return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w, case.group, scales)

    nbytes = case.packed_bytes(4)
    return Contender("torch int4pack BF16", [run(packed.clone()) for _ in range(case.copies(nbytes))], nbytes)


def _onednn(case: Case) -> Contender:
    """oneDNN's product of codes as torch ships it, prepacked; each row quantized by fewbit's pass before."""
    codes, scale = case.rounded()
    codes, scale = codes.reshape(case.n, case.k).to(torch.int8), scale.reshape(-1).contiguous()

    def run(packed: Tensor) -> Run:
        def product() -> Tensor:
            rows, row_scale = dispatch.quantize_rows_dynamic(case.x, 127)
            shifted = rows.view(torch.uint8) ^ 128
            return onednn.linear(shifted, 1.0, 128, packed, scale).mul_(row_scale[:, None])

        return product

    nbytes = case.packed_bytes(4)
    copies = [run(onednn.pack_linear(codes.clone())) for _ in range(case.copies(nbytes))]
    return Contender("torch oneDNN int8, rows quantized before", copies, nbytes)


def _dynamic(case: Case) -> Contender:
    nbytes = case.packed_bytes(4)
    layer = nn.Linear(case.k, case.n, bias=False)
    layer.weight.data = case.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [
            torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
                nn.Sequential(layer), {nn.Linear}, torch.qint8
            )
            for _ in range(case.copies(nbytes))
        ]

    def run(module: nn.Module) -> Run:
        return lambda: module(case.x)

    return Contender("torch.ao dynamic int8", [run(module) for module in made], nbytes)
