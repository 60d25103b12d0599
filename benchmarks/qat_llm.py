"""The table of benchmarks/results/qat_llm.md from a run of ``examples/qat_llm.py``.

python examples/qat_llm.py --out runs/llm
python benchmarks/qat_llm.py runs/llm
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="output folder of the example")
    found = json.loads((parser.parse_args().run / "results.json").read_text(encoding="utf-8"))
    reference = found["float"]
    rows = []
    for name, trained in found.items():
        scheme, _, how = name.partition(" ")
        if how in ("trained", "adapters"):
            after = found[f"{scheme} post-training"]
            recovered = (after - trained) / (after - reference)
            rows.append((name, f"{after:.3f}", f"{trained:.3f}", f"{recovered:.0%}"))
    table = _results.markdown_table(("", "post-training", "trained", "recovered"), rows)
    text = f"""# A tiny Llama, quantized after and in training

Perplexity a byte on 64 windows of WikiText-2's test text. A Llama of bytes (width 128, 2 layers), trained from scratch
for 2,000 steps on the validation text; float: {reference:.3f}. Trained: 200 more steps with LSQ and distillation from
the float model, weights only; "adapters": the codes of post-training quantization stay, and adapters of rank 8 inside
the quantizer train. Recovered: share of what post-training quantization lost. The float model trained on for as many
steps in the same way: {found["float, trained on"]:.3f}, so part of what is recovered is further training.
Made by `examples/qat_llm.py`, gathered by `benchmarks/qat_llm.py`.

{table}"""
    _results.write("qat_llm", text, found)


if __name__ == "__main__":
    main()
