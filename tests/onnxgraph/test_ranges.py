from __future__ import annotations

import numpy as np
from onnx_cases import as_ir, branches, pictures, run

from fewbit.numbers.spec import QSpec
from fewbit.onnxgraph import layers, observe, placement, ranges, targets
from fewbit.onnxgraph.simplify import simplify

SPEC = QSpec.parse("uint8/tensor/asym")


def test_ranges_are_those_of_the_tensors_that_share() -> None:
    model = as_ir(branches())
    simplify(model)
    target = targets.get("onnxruntime")
    places = placement.place(model, layers.find(model), target)
    statistics = ranges.new_statistics(places, "minmax", {})
    batches = [pictures(size=8), pictures(size=8, seed=1)]
    observe.observe(model, statistics, batches)
    codes = ranges.solve(ranges.merged(places, statistics), "minmax", {}, SPEC)
    assert set(codes) == set(places.observed)
    group = codes[places.group["joined"]]
    with observe.exposed(model, ["joined", "stem.act"]):
        found = [run(model, {"x": batch}) for batch in batches]
    top = max(float(a.max()) for pair in found for a in pair)
    low = min(float(a.min()) for pair in found for a in pair)
    np.testing.assert_allclose(group.scale, (top - low) / 255, rtol=1e-5)
