"""What a step of quantization-aware training costs: fewbit and torch.ao beside float, ResNet-20 at 32x32, W8A8.

    python benchmarks/qat_step.py

CPU time of one thread, medians over interleaved rounds, so that other processes matter little.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from pathlib import Path

import _results
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fewbit

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
from _pictures import resnet20

BATCH = 64


def peer(model: nn.Module, x: Tensor) -> nn.Module:
    """torch.ao's own quantization-aware training through FX."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    mapping = get_default_qat_qconfig_mapping("onednn")
    prepared: nn.Module = prepare_qat_fx(copy.deepcopy(model).train(), mapping, (x,))
    return prepared


def networks(x: Tensor) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    model = resnet20(10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model(x)
    found = {"float": model, "torch.ao": peer(model, x)}
    for estimator in ("ste", "lsq", "lsq_plus", "pact"):
        found[f"fewbit {estimator}"] = fewbit.prepare_qat(model.eval(), "W8A8", [x], estimator=estimator)
    found["fewbit lsq, norms frozen"] = fewbit.prepare_qat(model, "W8A8", [x], freeze_norms_after=0)
    model.train()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    x = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (BATCH,))
    models = networks(x)
    optimizers = {name: torch.optim.SGD(model.parameters(), 1e-3) for name, model in models.items()}
    spent: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(options.rounds + 2):
        for name, model in models.items():
            start = time.process_time()
            optimizers[name].zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizers[name].step()
            spent[name].append(time.process_time() - start)
    medians = {name: 1000 * sorted(times[2:])[options.rounds // 2] for name, times in spent.items()}
    rows = [
        (n, f"{ms:.0f}", f"{ms / medians['float']:.2f}", f"{ms / medians['torch.ao']:.2f}") for n, ms in medians.items()
    ]
    table = _results.markdown_table(("", "CPU ms", "to float", "to torch.ao"), rows)
    text = f"""# A step of quantization-aware training

ResNet-20, W8A8, batch {BATCH} at 32x32, float32, one thread; forward, backward and SGD. CPU time, medians of
{options.rounds} interleaved rounds. Made by `python benchmarks/qat_step.py`.

{table}"""
    _results.write("qat_step", text, {"batch": BATCH, "milliseconds": medians})


if __name__ == "__main__":
    main()
