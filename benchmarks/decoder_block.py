"""One decoder block end to end with weights of 4 bits: Gemma-3-270M's shape and a 7B Llama's.

Contenders take turns in one process (:mod:`fewbit.bench.race`), each with enough copies that the caches do not hold its
weights, every copy run once before. Peers: torch FP32 and BF16, torch's int4pack kernel (which torchao uses on CPUs)
and OpenVINO with int4 weights in groups of 128 and dynamic quantization of the same groups. fewbit runs with the rest
of the block in float32, as OpenVINO does, and in bfloat16, as torch's BF16 and int4pack do. ``--profile`` shows what a
call's time is made of (:mod:`_block_profile`).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _block_profile import ABOUT, PARTS, cells, parts
from _results import RESULTS, markdown_table, write
from torch import Tensor, nn

import fewbit
from fewbit.bench.race import in_turn
from fewbit.kernels import dispatch

GROUP = 128
Run = Callable[[], object]


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    footprint: int  # bytes of weights to walk through


GEMMA = Shape("Gemma-3-270M", 640, 4, 1, 256, 2048, 128 << 20)
LLAMA = Shape("Llama-7B", 4096, 32, 32, 128, 11008, 256 << 20)


class Block(nn.Module):
    """RMS norm, rotary attention, gated feed-forward: what Llama's blocks compute."""

    def __init__(self, shape: Shape, tokens: int) -> None:
        super().__init__()
        s = self.shape = shape
        self.q = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.gate, self.up = nn.Linear(s.hidden, s.ffn, bias=False), nn.Linear(s.hidden, s.ffn, bias=False)
        self.down = nn.Linear(s.ffn, s.hidden, bias=False)
        self.norms = nn.Parameter(torch.ones(2, s.hidden))
        angles = torch.arange(tokens)[:, None] / 10000 ** (torch.arange(0, s.head_dim, 2) / s.head_dim)
        self.register_buffer("cos", torch.cat([angles.cos()] * 2, dim=-1))
        self.register_buffer("sin", torch.cat([angles.sin()] * 2, dim=-1))

    def norm(self, x: Tensor, which: int) -> Tensor:
        """RMS norm."""
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.norms[which]

    def heads(self, x: Tensor, count: int) -> Tensor:
        """``[heads, tokens, head_dim]``."""
        return x.reshape(-1, count, self.shape.head_dim).transpose(0, 1)

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions."""
        low, high = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-high, low], dim=-1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        """``[tokens, hidden]`` in and out."""
        s, y = self.shape, self.norm(x, 0)
        q, k = self.turned(self.heads(self.q(y), s.heads)), self.turned(self.heads(self.k(y), s.kv_heads))
        v = self.heads(self.v(y), s.kv_heads)
        if s.kv_heads != s.heads:
            k, v = (t.repeat_interleave(s.heads // s.kv_heads, dim=0) for t in (k, v))
        attended = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
        x = x + self.o(attended.transpose(0, 1).reshape(x.shape[0], -1))
        y = self.norm(x, 1)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Int4Pack(nn.Module):
    """torch's own int4 product, which torchao's layers call on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        codes, scale = rounded(linear.weight.detach())
        unsigned = (codes.reshape(linear.out_features, -1) + 8).to(torch.int32)
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(unsigned, 2)
        table = torch.stack([scale[..., 0], torch.zeros_like(scale[..., 0])], dim=-1).transpose(0, 1)
        self.scales = table.contiguous().to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        """``[tokens, K]`` bfloat16."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.weight, GROUP, self.scales)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    blocks = weight.reshape(weight.shape[0], -1, GROUP)
    scale = blocks.abs().amax(-1, keepdim=True) / 7
    return (blocks / scale).round(), scale


def int4pack(block: Block) -> Block:
    block = copy.deepcopy(block).to(torch.bfloat16)
    for name, child in list(block.named_children()):
        if isinstance(child, nn.Linear):
            setattr(block, name, Int4Pack(child.float()))
    return block


def openvino_run(block: Block, x: Tensor) -> Run | None:
    """The traced block, every constant weight replaced by its codes; None without OpenVINO."""
    # Its telemetry starts a process at each conversion, minutes in all; without the package it uses a stub of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino as ov
        from openvino import opset13 as op
    except ImportError:
        return None
    model = ov.convert_model(block, example_input=x)
    model.reshape([x.shape[0], x.shape[1]])
    for node in model.get_ordered_ops():
        source = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if source is None or source.get_type_name() != "Constant" or len(source.shape) != 2:
            continue
        codes, scale = rounded(torch.from_numpy(source.data.copy()))
        pairs = codes.to(torch.int8).numpy().reshape(-1, 2) & 15
        tensor = ov.Tensor(ov.Type.i4, ov.Shape(list(codes.shape)))
        packed = (pairs[:, 0] | (pairs[:, 1] << 4)).astype(np.uint8)
        tensor.data[:] = packed.reshape(tensor.data.shape).view(tensor.data.dtype)
        wide = op.multiply(op.convert(op.constant(tensor), np.float16), op.constant(scale.half().numpy()))
        flat = op.reshape(wide, op.constant(np.array(list(source.shape))), special_zero=False)
        node.input(1).replace_source_output(op.convert(flat, np.float32).output(0))
    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(GROUP),
    }  # fmt: skip
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    request.set_input_tensor(ov.Tensor(x.numpy()))
    run: Any = request.infer
    return run


def copies(shape: Shape, block: Block, bits: float) -> int:
    """As many as walk through the footprint, 16 at most."""
    params = sum(p.numel() for p in block.parameters())
    return max(1, min(16, math.ceil(shape.footprint / (params * bits / 8))))


def blocks(shape: Shape, tokens: int) -> tuple[dict[str, list[Block]], Block]:
    """Copies of the eager contenders, and the float block they were made of."""
    torch.manual_seed(0)
    block = Block(shape, tokens).eval().requires_grad_(False)

    def many(made: Block, bits: float) -> list[Block]:
        return [made, *(copy.deepcopy(made) for _ in range(copies(shape, block, bits) - 1))]

    found = {"torch FP32": many(block, 32), "torch BF16": many(copy.deepcopy(block).to(torch.bfloat16), 16)}
    found["torch int4pack (torchao), BF16"] = many(int4pack(block), 4)
    for scheme in (f"W4A16-g{GROUP}", f"W4A8-dynamic-g{GROUP}"):
        quantized = fewbit.quantize(block, scheme, calibrator="minmax", algorithm="rtn")
        found[f"fewbit {scheme}"] = many(quantized, 4)
        found[f"fewbit {scheme}, BF16"] = many(copy.deepcopy(quantized).to(torch.bfloat16), 4)
    return found, block


def contenders(shape: Shape, tokens: int) -> tuple[dict[str, list[Run]], dict[str, list[Block]]]:
    """Copies of everyone as calls, and the eager ones as modules."""
    eager, block = blocks(shape, tokens)
    x = torch.randn(tokens, shape.hidden)
    short = x.to(torch.bfloat16)
    runs: dict[str, list[Run]] = {}
    for name, modules in eager.items():
        value = short if "BF16" in name else x
        runs[name] = [lambda m=m, value=value: m(value) for m in modules]  # type: ignore[misc]
    peers = [openvino_run(block, x) for _ in range(copies(shape, block, 4))]
    if peers[0] is not None:
        runs["OpenVINO int4, dynamic activations"] = [peer for peer in peers if peer is not None]
    return runs, eager


def measured(
    shape: Shape, tokens: int, rounds: int, profiled: bool
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Seconds a call of everyone, and of some their parts."""
    runs, eager = contenders(shape, tokens)
    with torch.inference_mode():
        for many in runs.values():
            for run in many:
                run()
    seconds = in_turn(runs, rounds, calls=3 if tokens < 100 else 1)
    shown = [name for name in eager if "A16" not in name and "FP32" not in name] if profiled else []
    return seconds, {name: parts(eager[name], runs[name], 3 * rounds) for name in shown}


def table(rows: list[dict[str, Any]]) -> str:
    """Fastest first within a block and a number of tokens."""
    lines = []
    for key in dict.fromkeys((row["shape"], row["tokens"]) for row in rows):
        here = sorted((row for row in rows if (row["shape"], row["tokens"]) == key), key=lambda row: row["ms"])
        base = next(row["ms"] for row in here if row["name"] == "torch FP32")
        best = min(row["ms"] for row in here if not row["name"].startswith("fewbit"))
        for row in here:
            first = [key[0], str(key[1]), row["name"], f"{row['ms']:.3f}"]
            lines.append([*first, f"{base / row['ms']:.2f}", f"{best / row['ms']:.2f}"])
    return markdown_table(["block", "tokens", "", "ms", "× torch FP32", "× best peer"], lines, left=3)


def report(threads: int, data: dict[str, list[dict[str, Any]]]) -> None:
    """Write the results of this run, with those of earlier runs for the rest."""
    name = f"decoder_block_{threads}t_{dispatch.backend()}"
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key, new in data.items():
        done = {(row["shape"], row["tokens"]) for row in new}
        kept = [row for row in before.get(key, []) if (row["shape"], row["tokens"]) not in done]
        data[key] = sorted(kept + new, key=lambda row: (row["shape"], row["tokens"]))
    text = (
        f"# Decoder blocks, int4 in groups of {GROUP}\n\nMedians of interleaved calls, {threads} "
        f"thread{'s' if threads > 1 else ''}; ratios to torch FP32 and to the best peer.\n\n{table(data['rows'])}"
    )
    if data["profile"]:
        lines = [[row["shape"], str(row["tokens"]), row["name"], *cells(row)] for row in data["profile"]]
        text += f"\n\n{ABOUT}\n\n" + markdown_table(["block", "tokens", "", *PARTS, "a call"], lines, left=3)
    write(name, text, dict(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16, 512])
    parser.add_argument("--profile", action="store_true", help="take the eager contenders' time apart, too")
    parser.add_argument("--shapes", nargs="+", default=["gemma", "llama"], choices=["gemma", "llama"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data: dict[str, list[dict[str, Any]]] = {"rows": [], "profile": []}
    for key in arguments.shapes:
        shape = {"gemma": GEMMA, "llama": LLAMA}[key]
        for tokens in arguments.tokens:
            seconds, apart = measured(shape, tokens, arguments.rounds if tokens < 100 else 3, arguments.profile)
            case = {"shape": shape.name, "tokens": tokens}
            data["rows"] += [{**case, "name": name, "ms": 1e3 * value} for name, value in seconds.items()]
            data["profile"] += [{**case, "name": name, **taken} for name, taken in apart.items()]
            print(table(data["rows"][-len(seconds) :]), flush=True)
    report(arguments.threads, data)


if __name__ == "__main__":
    main()
