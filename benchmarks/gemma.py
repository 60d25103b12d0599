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
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

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
    perplexity: float
    kl: float
    agreement: float
    bits: float
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
        found += [ours(name, "asym", at) for name in ("awq", "gptq", "awq+gptq", "rotation+gptq", "autoround", "best")]
        found += [ours("gptq", "sym", at)]
        found += [Setting(name, at, make) for name, make in _gemma_peers.found(at)]
    return found


def make(setting: Setting, judge: _gemma.Judge, folder: Path) -> None:
    """Quantize, and keep what the model says of the judged windows."""
    path = folder / f"{setting.key}.pt"
    if path.exists():
        return
    model = _gemma.float_model()
    _gemma.calibration()  # tokenized once, of which the time is nobody's
    start, processor = time.perf_counter(), time.process_time()
    made, bits = setting.make(model)
    spent = time.perf_counter() - start, time.process_time() - processor
    print(
        f"{setting.key}: {spent[0]:.0f} s, {spent[1]:.0f} s of processor time, {torch.get_num_threads()} threads",
        flush=True,
    )
    if (about := fewbit.nn.info(made)) is not None:
        print("\n".join(f"  {note}" for note in about.notes), flush=True)
    about_row = {"bits": bits, "seconds": spent[0], "processor": spent[1], "threads": torch.get_num_threads()}
    torch.save({"row": about_row, "hidden": judge.hidden_of(made)}, path)


def judged(found: list[Setting], judge: _gemma.Judge, folder: Path) -> list[Row]:
    """The verdicts on what was made, as far as earlier runs did not find them."""
    rows = []
    for s in found:
        made, path = torch.load(folder / f"{s.key}.pt", weights_only=True), folder / f"{s.key}.json"
        if not path.exists():
            path.write_text(json.dumps(asdict(judge.verdict(made["hidden"]))))
        verdict = json.loads(path.read_text())
        rows.append(Row(name=s.name, at=s.at, **verdict, **made["row"]))
        print(f"{s.key}: " + ", ".join(f"{name} {value:.4g}" for name, value in verdict.items()), flush=True)
    return rows


def report(rows: list[Row], perplexity: float) -> str:
    lines = [
        "# Gemma-3-270M, decoder linears only",
        "",
        "64 calibration windows of 512 tokens of wikitext2-valid; judged on the first 32 windows of 512 of",
        f"wikitext2-test, `<bos>` before each. Float: perplexity {perplexity:.2f}. Bits count codes, float16 scales",
        "and zero points; seconds are those of quantizing, by the clock and of all threads together. What else there",
        "is to know of the rows stands in `gemma_notes.md`.",
        "",
    ]
    columns = ["", "bits", "perplexity", "KL", "same top-1", "s", "s of processor", "threads"]
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
                str(row.threads),
            ]
            for row in some
        ]
        if cells:
            lines += [f"## {at} {AT[at].split('/')[1]}", "", _results.markdown_table(columns, cells), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of settings, or words of which they hold one")
    parser.add_argument("--at", nargs="*", default=list(AT), choices=list(AT))
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "fewbit" / "gemma-results")
    parser.add_argument("--no-judging", action="store_true", help="only quantize")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    judge = _gemma.Judge(_gemma.float_model(), file=arguments.folder / "float-said.pt")
    known = []
    for setting in settings():
        wanted = not arguments.only or any(word in (setting.name, *setting.name.split()) for word in arguments.only)
        if wanted and setting.at in arguments.at:
            make(setting, judge, arguments.folder)
        if (arguments.folder / f"{setting.key}.pt").exists():
            known.append(setting)
    if not arguments.no_judging:
        rows, perplexity = judged(known, judge, arguments.folder), _float_perplexity(judge, arguments.folder)
        data = {"float perplexity": perplexity, "rows": [asdict(row) for row in rows]}
        _results.write("gemma", report(rows, perplexity), data)


def _float_perplexity(judge: _gemma.Judge, folder: Path) -> float:
    path = folder / "float.json"
    if not path.exists():
        path.write_text(json.dumps(judge.verdict(judge.float.hidden).perplexity))
    return float(json.loads(path.read_text()))


if __name__ == "__main__":
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    main()
