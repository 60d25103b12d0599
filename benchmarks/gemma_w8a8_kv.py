"""Gemma-3-270M with 8-bit products and with quantized keys and values: perplexity against float.

    python benchmarks/gemma_w8a8_kv.py [WINDOWS]

Decoder linears only, as in the weight-only judge: embedding and output layer stay float. SmoothQuant sees 8 windows of
512 tokens of wikitext2-valid; all are judged on the same first windows of wikitext2-test, ``<bos>`` before each. Keys
and values are measured as in generating token by token: passes of 32 tokens that read the past from the cache.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import _gemma
import torch
from _results import markdown_table, write
from torch import Tensor

import fewbit
from fewbit.generation.decode import cache_argument
from fewbit.generation.kv_cache import quantized_cache
from fewbit.generation.kv_options import KVOptions
from fewbit.recipe import Recipe, Rule

CALIBRATED = 8
CHUNK = 32
CACHES = ("int8", "int4", "int4-token")
Hidden = Callable[[Tensor], Tensor]


def quantized(base: Any, algorithm: str) -> Any:
    """The decoder with dynamic int8 products; the embedding is shared with the float model's, not copied."""
    recipe = Recipe("W8A8-dynamic", rules=(Rule(match="embed_tokens", skip=True),))
    batches = [{"input_ids": ids} for ids in _gemma.windows("wikitext2-valid.txt", CALIBRATED)]
    start = time.perf_counter()
    made = fewbit.quantize(base, recipe, batches, algorithm=algorithm)
    made.embed_tokens = base.embed_tokens
    print(f"{algorithm}: {time.perf_counter() - start:.0f} s", flush=True)
    return made


def one_pass(base: Any) -> Hidden:
    return lambda ids: base(input_ids=ids, use_cache=False).last_hidden_state[0]


def through_cache(whole: Any, options: KVOptions) -> Hidden:
    def hidden(ids: Tensor) -> Tensor:
        cache = {cache_argument(whole): quantized_cache(whole, options)}
        parts = [whole.model(input_ids=p, use_cache=True, **cache).last_hidden_state[0] for p in ids.split(CHUNK, 1)]
        return torch.cat(parts)

    return hidden


class Sums:
    """Of one variant over the windows."""

    def __init__(self) -> None:
        self.nll = self.kl = self.same = 0.0
        self.tokens = 0

    def add(self, ours: Tensor, theirs: Tensor, targets: Tensor) -> None:
        """Take in log-probabilities ``[T, vocabulary]``."""
        self.nll -= float(ours.gather(1, targets[:, None]).sum(dtype=torch.float64))
        self.kl += float((theirs.exp() * (theirs - ours)).sum(dtype=torch.float64))
        self.same += float((ours.argmax(1) == theirs.argmax(1)).sum())
        self.tokens += len(targets)

    def row(self, name: str, reference: Sums) -> dict[str, Any]:
        """What was found."""
        perplexity, float_perplexity = (math.exp(s.nll / s.tokens) for s in (self, reference))
        return {
            "name": name,
            "perplexity": perplexity,
            "above float": perplexity / float_perplexity - 1,
            "kl": self.kl / self.tokens,
            "same top-1": self.same / self.tokens,
        }


@torch.no_grad()
def judge(whole: Any, variants: dict[str, Hidden], count: int) -> None:
    """All variants, window by window, the float model's logits computed once a window; what there is is written after
    each."""
    sums = {name: Sums() for name in variants}
    for number, ids in enumerate(_gemma.windows("wikitext2-test.txt", count), 1):
        states = {name: hidden(ids)[:-1] for name, hidden in variants.items()}
        for part in torch.arange(states["float"].shape[0]).split(128):
            exact = torch.log_softmax(whole.lm_head(states["float"][part]), 1)
            for name, found in states.items():
                ours = exact if name == "float" else torch.log_softmax(whole.lm_head(found[part]), 1)
                sums[name].add(ours, exact, ids[0, 1:][part])
        rows = [each.row(name, sums["float"]) for name, each in sums.items()]
        told = ", ".join(f"{row['name']} {row['perplexity']:.3f} ({row['above float']:+.2%})" for row in rows)
        print(f"window {number}: {told}", flush=True)
        report(rows, number)


def report(rows: list[dict[str, Any]], count: int) -> None:
    table = markdown_table(
        ["Gemma-3-270M", "perplexity", "above float", "KL, nats", "same top-1"],
        [
            [
                row["name"],
                f"{row['perplexity']:.3f}",
                f"{row['above float']:+.2%}",
                f"{row['kl']:.5f}",
                f"{row['same top-1']:.1%}",
            ]
            for row in rows
        ],
    )
    caches = "; ".join(f"{name}: {KVOptions.parse(name).describe()}" for name in CACHES)
    text = f"First {count} windows of 512 tokens of wikitext2-test, BOS before each.\n\n{table}\n\n{caches}."
    write("gemma_w8a8_kv", text, {"windows": count, "rows": rows})


def main(count: int = _gemma.JUDGED_WINDOWS) -> None:
    torch.manual_seed(0)
    whole: Any = _gemma.float_model()
    variants = {"float": one_pass(whole.model)}
    for algorithm in ("rtn", "smoothquant"):
        variants[f"W8A8-dynamic, {algorithm}"] = one_pass(quantized(whole.model, algorithm))
    for name in CACHES:
        variants[f"keys and values {name}"] = through_cache(whole, KVOptions.parse(name))
    judge(whole, variants, count)


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
