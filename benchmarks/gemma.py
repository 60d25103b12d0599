"""Gemma-3-270M's decoder at 4, 3 and 2 bits: what every algorithm costs, beside other packages, all judged alike.

Only the decoder's linear layers are quantized. 64 windows of 512 tokens of wikitext2-valid calibrate; the first 32 of
wikitext2-test, ``<bos>`` before each, judge: perplexity, KL divergence from the float model, and the share of positions
with the same likeliest token.

    python benchmarks/gemma.py                          # everything; an interrupted run goes on with what is missing
    python benchmarks/gemma.py --only gptq best --at W3

writes ``benchmarks/results/gemma.md`` and ``.json``. It needs fewbit[llm], the packages that ``_gemma.py`` names and
some hours; peers are measured where they are installed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _gemma
import _gemma_peers
import _results
import torch
from torch import nn

import fewbit
from fewbit.nn import quantized_layers
from fewbit.nn.swap import quantized_weight
from fewbit.recipe import Recipe, Rule

AT = {"W4": "int4/g128", "W3": "int3/g128", "W2": "int2/g64"}


@dataclass(frozen=True)
class Setting:
    """One row: who, at which bits, and how a model is made from the float one."""

    name: str
    at: str
    make: Callable[[nn.Module], tuple[nn.Module, float]]

    @property
    def key(self) -> str:
        """A name for files."""
        return f"{self.at}-{self.name}".replace(" ", "_").replace("/", "_")


@dataclass(frozen=True)
class Row:
    """What a setting costs; seconds are of quantizing, processor time of all threads."""

    name: str
    at: str
    bits: float
    perplexity: float
    kl: float
    agreement: float
    seconds: float
    processor: float
    threads: int


def decoder(spec: str) -> Recipe:
    """The decoder's linear layers as ``spec``, the tied embedding in float."""
    rules = (Rule("*embed_tokens*", skip=True), Rule("*lm_head*", skip=True, optional=True))
    return Recipe("W4A16", weights=spec, rules=rules)


def ours(algorithm: str, symmetry: str, at: str, calibrator: str | None = None) -> Setting:
    def make(model: nn.Module) -> tuple[nn.Module, float]:
        data = None if algorithm in ("rtn", "hqq") else [window[:, :-1] for window in _gemma.calibration()]
        made = fewbit.quantize(
            model, decoder(f"{AT[at]}/{symmetry}/f16"), data, algorithm=algorithm, calibrator=calibrator, progress=_tell
        )
        return made, bits_per_weight(made)

    clip = "" if calibrator is None else f" {calibrator}"
    return Setting(f"fewbit {algorithm}{clip} {symmetry}", at, make)


def _tell(stage: str, done: int, total: int) -> None:
    if done % max(1, total // 20) == 0:
        print(f"  {stage} {done}/{total}", flush=True)


def bits_per_weight(model: nn.Module) -> float:
    """Bits of the quantized weights with their scales and zero points."""
    weights = [quantized_weight(layer).weight_qtensor() for layer in quantized_layers(model).values()]
    return sum(t.nbytes for t in weights) * 8 / sum(t.codes.numel() - t.padding for t in weights)


def settings() -> list[Setting]:
    found = []
    for at in AT:
        found += [ours("rtn", symmetry, at, clip) for symmetry in ("sym", "asym") for clip in ("minmax", "mse")]
        found += [ours("hqq", symmetry, at) for symmetry in ("sym", "asym")]
        found += [ours(name, "asym", at) for name in ("awq", "gptq", "awq+gptq", "best")]
        found += [ours("gptq", "sym", at)]
        found += [Setting(name, at, make) for name, make in _gemma_peers.found(at)]
    return found


def measure(setting: Setting, judge: _gemma.Judge, folder: Path) -> Row:
    """Quantize and judge, or read what an earlier run found."""
    path = folder / f"{setting.key}.pt"
    if not path.exists():
        model = _gemma.float_model()
        start, processor = time.perf_counter(), time.process_time()
        made, bits = setting.make(model)
        spent = time.perf_counter() - start, time.process_time() - processor
        print(f"{setting.key}: quantized in {spent[0]:.0f} s, {spent[1]:.0f} s of processor time", flush=True)
        verdict = judge(made)
        row = Row(setting.name, setting.at, bits, *asdict(verdict).values(), *spent, torch.get_num_threads())
        torch.save(asdict(row), path)
    row = Row(**torch.load(path, weights_only=True))
    print(f"{setting.key}: perplexity {row.perplexity:.2f}, KL {row.kl:.3f}, agreement {row.agreement:.3f}", flush=True)
    return row


def report(rows: list[Row], perplexity: float) -> str:
    lines = [
        "# Gemma-3-270M, decoder linears only",
        "",
        "64 calibration windows of 512 tokens of wikitext2-valid; judged on the first 32 windows of 512 of",
        f"wikitext2-test, `<bos>` before each. Float: perplexity {perplexity:.2f}. Bits count codes, float16 scales",
        "and zero points.",
        "",
    ]
    columns = ["", "bits", "perplexity", "KL", "same top-1", "s", "s of processor"]
    for at in AT:
        some = sorted((row for row in rows if row.at == at), key=lambda row: row.kl)
        cells = [
            [
                row.name,
                f"{row.bits:.3f}",
                f"{row.perplexity:.2f}",
                f"{row.kl:.3f}",
                f"{row.agreement:.1%}",
                f"{row.seconds:.0f}",
                f"{row.processor:.0f}",
            ]
            for row in some
        ]
        if cells:
            lines += [f"## {at} {AT[at].split('/')[1]}", "", _results.markdown_table(columns, cells), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="words of which a setting's name holds one")
    parser.add_argument("--at", nargs="*", default=list(AT), choices=list(AT))
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "fewbit" / "gemma-results")
    parser.add_argument("--no-report", action="store_true", help="only measure")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    judge = _judge(arguments.folder)
    rows = []
    for setting in settings():
        wanted = not arguments.only or any(word in setting.name.split() for word in arguments.only)
        known = (arguments.folder / f"{setting.key}.pt").exists()
        if (wanted and setting.at in arguments.at) or known:
            rows.append(measure(setting, judge, arguments.folder))
    if not arguments.no_report:
        text = report(rows, judge.float_perplexity)
        data = {"float perplexity": judge.float_perplexity, "rows": [asdict(row) for row in rows]}
        _results.write("gemma", text, data)


def _judge(folder: Path) -> Any:
    """The judge; what the float model says is kept beside the results."""
    path = folder / "float.pt"
    model = _gemma.float_model()
    judge = _gemma.Judge(model, hidden=torch.load(path, weights_only=True) if path.exists() else None)
    if not path.exists():
        torch.save(judge.hidden, path)
    known = folder / "float-perplexity.pt"
    if not known.exists():
        torch.save(judge.perplexity(), known)
    judge.float_perplexity = torch.load(known, weights_only=True)  # type: ignore[attr-defined]
    return judge


if __name__ == "__main__":
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    main()
