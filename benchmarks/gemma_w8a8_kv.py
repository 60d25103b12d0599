"""Gemma-3-270M with 8-bit products and with quantized keys and values: perplexity against float.

    python benchmarks/gemma_w8a8_kv.py [WINDOWS] [FOLDER]

Decoder linears only, as in the weight-only judge: embedding and output layer stay float. SmoothQuant sees 8 windows of
512 tokens of wikitext2-valid; all are judged on the same first windows of wikitext2-test, ``<bos>`` before each. Keys
and values are measured as in generating token by token: passes of 32 tokens that read the past from the cache. What
each variant says is kept in FOLDER, so that an interrupted run goes on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
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
FOLDER = Path.home() / ".cache" / "fewbit" / "gemma-results"
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


def variants(whole: Any) -> dict[str, Callable[[], Hidden]]:
    """What is judged; each is made when it is its turn."""
    found: dict[str, Callable[[], Hidden]] = {
        f"W8A8-dynamic, {algorithm}": lambda a=algorithm: one_pass(quantized(whole.model, a))
        for algorithm in ("rtn", "smoothquant")
    }
    return found | {
        f"keys and values {name}": lambda n=name: through_cache(whole, KVOptions.parse(n)) for name in CACHES
    }


@torch.no_grad()
def states(name: str, make: Callable[[], Hidden], judge: _gemma.Judge, folder: Path) -> Tensor:
    """The last hidden states of a variant on all windows."""
    path = folder / f"{len(judge.windows)}-{name}.pt".replace(" ", "_").replace(",", "")
    if path.exists():
        known: Tensor = torch.load(path, weights_only=True)
        return known
    hidden, start = make(), time.perf_counter()
    found = torch.cat([hidden(ids[:, :-1]) for ids in judge.windows])
    print(f"{name}: {time.perf_counter() - start:.0f} s of forward passes", flush=True)
    torch.save(found, path)
    return found


def report(rows: dict[str, _gemma.Verdict], count: int) -> None:
    reference = rows["float"].perplexity
    cells = [
        [
            name,
            f"{row.perplexity:.3f}",
            f"{row.perplexity / reference - 1:+.2%}",
            f"{row.kl:.5f}",
            f"{row.agreement:.1%}",
        ]
        for name, row in rows.items()
    ]
    table = markdown_table(["Gemma-3-270M", "perplexity", "above float", "KL, nats", "same top-1"], cells)
    caches = "; ".join(f"{name}: {KVOptions.parse(name).describe()}" for name in CACHES)
    text = f"First {count} windows of 512 tokens of wikitext2-test, BOS before each.\n\n{table}\n\n{caches}."
    write("gemma_w8a8_kv", text, {"windows": count, "rows": {name: asdict(row) for name, row in rows.items()}})


def main(count: int = _gemma.JUDGED_WINDOWS, folder: Path = FOLDER) -> None:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    whole: Any = _gemma.float_model()
    known = folder / "float-said.pt" if count == _gemma.JUDGED_WINDOWS else None
    judge = _gemma.Judge(whole, count, file=known)
    rows = {"float": judge.verdict(judge.float.hidden)}
    for name, make in variants(whole).items():
        rows[name] = judge.verdict(states(name, make, judge, folder))
        report(rows, count)


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:2]), *(Path(each) for each in sys.argv[2:3]))
