"""The table of benchmarks/results/qat_cifar10.md from the runs of ``examples/qat_cifar10.py``; that of another network
is qat_cifar10_NETWORK.md.

    python examples/qat_cifar10.py --out runs/resnet20
    python benchmarks/qat_cifar10.py runs/resnet20

Training takes hours on two cores; so it is the example's, which can be killed and goes on, and this script only
gathers. Several folders are joined: a folder a width, trained at the same time, from the same float network.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import _results

COLUMNS = ("", "steps", "post-training", "trained", "converted", "to float", "agree", "values that differ", "integers")


def gather(folders: list[Path]) -> dict[str, Any]:
    found = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    if len({(one["network"], one["float"]) for one in found}) != 1:
        sys.exit("error: the runs are not of one float network")
    rows = sorted((row for one in found for row in one["rows"]), key=lambda row: row["name"], reverse=True)
    controls = [one["float_trained_on"] for one in found if one.get("float_trained_on") is not None]
    control = controls[0] if controls else None
    return {"network": found[0]["network"], "float": found[0]["float"], "float_trained_on": control, "rows": rows}


def cells(row: dict[str, Any], reference: float) -> tuple[str, ...]:
    trained = row["converted"] is not None
    best = row["converted"] if trained else row["post_training"]
    after = (f"{row['trained']:.2f}", f"{row['converted']:.2f}") if trained else ("", "")
    agreement = f"{row['agreement']:.4f}" if trained else ""
    different = f"{row['different']} of {row['values']:.2e}" if row.get("values") else ""
    return (
        row["name"],
        str(row["steps"]),
        f"{row['post_training']:.2f}",
        *after,
        f"{best - reference:+.2f}",
        agreement,
        different,
        f"{row['integers']:.2f}" if row.get("integers") else "",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="output folders of the example")
    parser.add_argument("--note", default="", help="a sentence on the schedule")
    options = parser.parse_args()
    found = gather(options.runs)
    table = _results.markdown_table(COLUMNS, [cells(row, found["float"]) for row in found["rows"]])
    control = found["float_trained_on"]
    further = "" if control is None else f"; the float network trained on in the same way: {control:.2f}"
    text = f"""# {found["network"]} on CIFAR-10: training at few bits

Top-1 in percent on 5,000 test pictures; float: {found["float"]:.2f}{further}. First and last layer keep 8 bits.
Post-training: the same recipe without training (`mse` ranges, bias correction). Trained: LSQ with distillation from the
float network; agree: share of test pictures on which the trained and the converted model predict the same; values that
differ: of all that their layers gave on these pictures; integers: deployed as one network of integers, what lies
between the layers in 8 bits.
{options.note}
Made by `examples/qat_cifar10.py`, gathered by `benchmarks/qat_cifar10.py`.

{table}"""
    name = "qat_cifar10" if found["network"] == "resnet20" else f"qat_cifar10_{found['network']}"
    _results.write(name, text, {**found, "note": options.note})


if __name__ == "__main__":
    main()
