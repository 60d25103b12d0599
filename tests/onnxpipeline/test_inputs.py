"""One pass over the data, and which statistics it takes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_cases import as_ir, convnet, pictures

from fewbit.onnxpipeline.inputs import Inputs
from fewbit.onnxpipeline.quantize import Job, Settings
from fewbit.recipe import Recipe


@pytest.mark.parametrize("corrects", [True, False])
@pytest.mark.parametrize("algorithm", ["auto", "rtn"])
def test_what_is_wanted_is_seen_and_the_float_model_stays(algorithm: str, corrects: bool) -> None:
    settings = Settings(algorithm=algorithm, bias_correction=corrects)
    job = Job(as_ir(convnet()), Recipe("W4A16"), settings, None, with_data=True)
    job.chosen = job.prepare()
    inputs = Inputs.wanted(job, list(job.layers.values()), iter([pictures(4), pictures(4, seed=1)]))
    nodes = [node.name for node in job.model.graph]
    inputs.observe({}, None)
    assert (inputs.means is not None, inputs.grams is not None) == (corrects, algorithm == "auto")
    assert [node.name for node in inputs.model.graph] == nodes
    assert [len(batch) for batch in inputs.data.batches] == [4, 4]
    for layer in job.layers.values():
        if inputs.means is not None:
            assert inputs.means.answers(layer)
        if inputs.grams is not None:
            matrices = inputs.grams.matrices(layer)
            assert matrices is not None
            assert np.isfinite(matrices.numpy()).all()
