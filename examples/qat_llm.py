"""Quantization-aware training of a tiny language model at 4 and 2 bits, against post-training quantization.

    python examples/qat_llm.py --train TEXT --test TEXT --out runs/llm

A Llama of bytes is trained from scratch on one text and measured on another. Then it is quantized after training, and
by training on with fake-quantized weights, distilled from the float model, and once more by adapters on the frozen
codes. Needs fewbit[llm]; some minutes on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError, require
from fewbit.train import Distillation, add_lora

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
WINDOW, BATCH = 64, 8


def tiny_llama(width: int, layers: int) -> nn.Module:
    transformers = require("transformers", "llm")
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=width, intermediate_size=width * 3, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=WINDOW, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model: nn.Module = transformers.LlamaForCausalLM(config)
    return model


def read(path: Path) -> Tensor:
    """The bytes of a text."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FewbitError(f"{path} cannot be read: {error.strerror}; name a text with --train and --test") from error
    if len(data) < 20 * WINDOW:
        raise FewbitError(f"{path} is too short: {len(data)} bytes")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def batches(text: Tensor, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(0, len(text) - WINDOW - 1, (BATCH,), generator=generator)
        yield text[starts[:, None] + torch.arange(WINDOW + 1)]


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def train(
    name: str, model: nn.Module, text: Tensor, steps: int, rate: float, seed: int, teacher: nn.Module | None = None
) -> None:
    """AdamW, one cycle; learned steps have no weight decay."""
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    decayed = [p for key, p in trained.items() if p.dim() > 1 and not key.endswith("scale")]
    others = [p for key, p in trained.items() if p.dim() <= 1 or key.endswith("scale")]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    distill = None if teacher is None else Distillation(model, teacher)
    model.train()
    start = time.monotonic()
    for step, ids in enumerate(batches(text, steps, seed), 1):
        with torch.autocast("cpu", torch.bfloat16):
            output = model(ids[:, :-1])
            loss = loss_of(output.logits, ids)
            loss = loss if distill is None else loss + distill(output, ids[:, :-1])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            left = (time.monotonic() - start) / step * (steps - step)
            print(
                f"{name}: step {step}/{steps}, loss {loss.item():.3f}, {left:.0f} s left", file=sys.stderr, flush=True
            )
    if distill is not None:
        distill.close()


@torch.no_grad()
def perplexity(model: nn.Module, text: Tensor, windows: int = 64) -> float:
    """Per byte, over evenly spread windows."""
    model.eval()
    starts = torch.linspace(0, len(text) - WINDOW - 1, windows).long()
    ids = text[starts[:, None] + torch.arange(WINDOW + 1)]
    losses = [float(loss_of(model(part[:, :-1]).logits, part)) for part in ids.split(BATCH)]
    return math.exp(sum(losses) / len(losses))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", type=Path, default=SHARED / "wikitext2-valid.txt", help="text to train on")
    parser.add_argument("--test", type=Path, default=SHARED / "wikitext2-test.txt", help="text to measure on")
    parser.add_argument("--out", type=Path, help="folder for results.json and the quantized models")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--float-steps", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200, help="steps of quantized training")
    parser.add_argument("--schemes", nargs="+", default=["W4A16-g64", "W2A16-g64"])
    return parser.parse_args()


def main() -> None:
    options = arguments()
    text, test = read(options.train), read(options.test)
    model = tiny_llama(options.width, options.layers)
    train("float", model, text, options.float_steps, 3e-3, seed=1)
    found = {"float": perplexity(model, test)}
    print(f"float: perplexity {found['float']:.3f} a byte", flush=True)
    control = copy.deepcopy(model)
    train("float, trained on", control, text, options.steps, 1e-3, seed=2, teacher=model)
    found["float, trained on"] = perplexity(control, test)  # what the same steps bring without quantization
    print(f"float, trained on for as many steps: {found['float, trained on']:.3f}", flush=True)
    for scheme in options.schemes:
        quantized = fewbit.quantize(model, scheme)
        after = found[f"{scheme} post-training"] = perplexity(quantized, test)
        print(f"{scheme}: post-training {after:.3f}", flush=True)
        ways = {"trained": (fewbit.prepare_qat(model, scheme), 1e-3), "adapters": (add_lora(quantized, rank=8), 3e-3)}
        for way, (prepared, rate) in ways.items():
            train(f"{scheme} {way}", prepared, text, options.steps, rate, seed=2, teacher=model)
            converted = fewbit.convert(prepared)
            trained = found[f"{scheme} {way}"] = perplexity(converted, test)
            recovered = (after - trained) / (after - found["float"])
            print(f"{scheme} {way}: {trained:.3f}, {recovered:.0%} of the loss recovered", flush=True)
            if options.out is not None:
                fewbit.save(converted, options.out / f"{scheme}-{way}")
    if options.out is not None:
        (options.out / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except FewbitError as error:
        sys.exit(f"error: {error}")
