"""Decoding speed of Gemma-3-270M: fewbit at W4 against torch BF16, torchao and bitsandbytes.

    python benchmarks/generate.py [TOKENS] [ROUNDS]

One loop for all: the model's forward of transformers on one token at a time, a float cache of keys and values, the
likeliest token next, one thread; variants take turns, medians of their rounds. ``$FEWBIT_PEERS`` names a site-packages
folder with torchao and bitsandbytes where the own environment lacks them; a peer that is missing is left out and told.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import _gemma
import torch
from _results import markdown_table, write
from torch import Tensor, nn

import fewbit
from fewbit.generation.decode import Speed, generate
from fewbit.recipe import Recipe, Rule

PROMPT = 64


def bfloat16() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(_gemma.folder(), dtype=torch.bfloat16).eval()


def fewbit_w4(dtype: torch.dtype, head: str | None = None) -> Any:
    """W4 with groups of 128; the output layer as the recipe has it, int8, or by a spec."""
    rules = () if head is None else (Rule(match="*embed_tokens", weights=head), Rule(match="lm_head", weights=head))
    q = fewbit.quantize(_gemma.float_model(), Recipe("W4A16-g128", rules=rules), algorithm="rtn")
    return q.to(dtype)


def torchao_int4() -> Any:
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    model = bfloat16()
    quantize_(model, PrototypeInt4WeightOnlyConfig(group_size=128))  # the layout that has a CPU kernel
    return model


def bitsandbytes_nf4() -> Any:
    from bitsandbytes.nn import Linear4bit

    model = bfloat16()
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            made = Linear4bit(module.in_features, module.out_features, False, torch.bfloat16, quant_type="nf4")
            made.load_state_dict({"weight": module.weight})
            parent, _, key = name.rpartition(".")
            setattr(model.model.get_submodule(parent), key, made.to("cpu"))
    return model.eval()


VARIANTS: dict[str, Callable[[], Any]] = {
    "torch BF16": bfloat16,
    "fewbit W4A16-g128, head int8, float32 between": lambda: fewbit_w4(torch.float32),
    "fewbit W4A16-g128, head int8, bfloat16 between": lambda: fewbit_w4(torch.bfloat16),
    "fewbit W4A16-g128, head int4 too, float32 between": lambda: fewbit_w4(torch.float32, "int4/g128/sym/f16"),
    "torchao int4 g128, head too": torchao_int4,
    "bitsandbytes nf4, head bfloat16": bitsandbytes_nf4,
}


def decode(model: Any, prompt: Tensor, tokens: int) -> float:
    """Tokens a second after the prompt."""
    from transformers import DynamicCache

    speed = Speed()
    for _ in generate(model, prompt, DynamicCache(config=model.config), limit=tokens, speed=speed):
        pass
    return speed.tokens_per_second


def main(tokens: int = 32, rounds: int = 5) -> None:
    torch.set_num_threads(1)
    if peers := os.environ.get("FEWBIT_PEERS"):
        sys.path.append(peers)
    prompt = _gemma.windows("wikitext2-test.txt", 1, PROMPT)[0]
    models, missing = {}, []
    for name, make in VARIANTS.items():
        start = time.perf_counter()
        try:
            models[name] = make()
            decode(models[name], prompt, 3)
        except Exception as error:  # noqa: BLE001 - a peer may fail in any way
            models.pop(name, None)
            missing.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        gc.collect()
        print(f"{name}: ready after {time.perf_counter() - start:.0f} s", flush=True)
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            found[name].append(decode(model, prompt, tokens))
    medians = {name: statistics.median(each) for name, each in found.items()}
    base = medians["torch BF16"]
    rows = [[name, f"{value:.1f}", f"{value / base:.2f}"] for name, value in medians.items()]
    table = markdown_table(["decoding, one thread", "tokens/s", "of torch BF16"], rows)
    told = "".join(f"\n\nLeft out: {each}" for each in missing)
    text = f"{tokens} tokens after a prompt of {PROMPT}, medians of {rounds} rounds in turn.\n\n{table}{told}"
    write("generate", text, {"tokens": tokens, "rounds": rounds, "tokens per second": found, "left out": missing})


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
