"""The dynamic part of a job: weights as codes, inputs quantized when the model runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerGroup
from fewbit.onnxgraph import dynamic, nbits, qdq
from fewbit.onnxgraph.constants import array_of, bytes_since, only_use
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxpipeline.rounding import Biases, rounded
from fewbit.recipe import LayerPlan

if TYPE_CHECKING:
    from fewbit.onnxpipeline.quantize import Job

_WHY_NOT_CONV = "a convolution with dynamic ranges (ConvInteger) is slower than float in ONNX Runtime"

_WHY_NOT_ONE = (
    "it has one output, to which several values are added: ONNX Runtime would take them for its bias and fail"
)


def run(job: Job, plans: list[LayerPlan], data: Iterable[Any] | None) -> None:
    """Quantize the planned layers of a job's model with dynamic activations.

    8-bit weights with one scale a channel become MatMulInteger; narrower or grouped ones MatMulNBits with int8
    products.

    Raises:
        FewbitError: The target has no dynamic quantization; a spec that no node holds.
    """
    from fewbit.onnxpipeline.quantize import layer_weights

    if job.target.name == "tensorrt":
        raise FewbitError("TensorRT has no dynamic activations; use a static scheme such as W8A8")
    graph, inputs, biases = job.model.graph, dynamic.DynamicInputs(job.model.graph), Biases()
    for step, plan in enumerate(plans, 1):
        assert plan.scheme is not None
        layer = job.layers[plan.name]
        if plan.kind not in ("MatMul", "Gemm"):
            job.skipped[plan.name] = _WHY_NOT_CONV
            continue
        if plan.scheme.activations is not None and plan.scheme.activations.bits != 8:
            raise FewbitError(f"{plan.name}: dynamic activations of ONNX models have 8 bits")
        spec = plan.scheme.weights
        packed = spec.bits < 8 or isinstance(spec.granularity, PerGroup)
        if not packed and _is_misread(layer):
            job.skipped[plan.name] = _WHY_NOT_ONE
            continue
        if not (packed and nbits.fits(spec)):
            layer_weights(spec, plan.name)
        codes, bias = rounded(job, plan)
        bias, before = biases.outside(job, layer, bias), set(graph.initializers)
        if packed:
            value = nbits.write_layer(graph, layer, codes, bias, nbits.INT8_PRODUCTS)
            how = f"int8/g{nbits.block_size(spec, codes.shape[1])}/sym, dynamic"
        else:
            value = dynamic.write_layer(graph, layer, codes, bias, inputs)
            how = "uint8/tensor/asym, dynamic"
        biases.note(layer, bias, value)
        job.tell(plan, codes, how, bytes_since(graph, before), bias_too=value is not None)
        job.told_progress("quantize", step, len(plans))
    if not job.told and (one := [name for name, why in job.skipped.items() if why == _WHY_NOT_ONE]):
        raise FewbitError(f"{one[0]} cannot have dynamic activations: {_WHY_NOT_ONE}; use a static scheme")
    if not job.told:
        raise FewbitError("the recipe is dynamic, and none of its layers is a MatMul or Gemm; use a static scheme")
    qdq.drop_unused(graph)
    biases.answer(job)


def _is_misread(layer: Layer) -> bool:
    """Whether ONNX Runtime (1.32) joins an integer product with an addition that is no bias, and does not run it."""
    reader = only_use(layer.node.outputs[0])
    if layer.kind != "MatMul" or reader is None or reader.op_type != "Add":
        return False
    added = [array_of(value) for value in reader.inputs]
    one = int(layer.weight.const_value.shape[1]) == 1
    return one and any(array is not None and array.size > 1 for array in added)
