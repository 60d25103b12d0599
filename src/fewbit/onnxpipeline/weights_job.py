"""The weight-only part of a job: packed products where the target has them, else codes and a DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fewbit.errors import FewbitError
from fewbit.numbers.granularity import PerChannel, PerGroup, PerTensor
from fewbit.numbers.qtensor import QTensor
from fewbit.onnxgraph import nbits, qdq, static
from fewbit.onnxgraph.constants import bytes_since
from fewbit.onnxgraph.layers import Layer
from fewbit.onnxpipeline.rounding import Biases, rounded
from fewbit.recipe import LayerPlan

if TYPE_CHECKING:
    from fewbit.onnxpipeline.quantize import Job


def run(job: Job, plans: list[LayerPlan], data: Iterable[Any] | None) -> None:
    """Quantize the weights of the planned layers of a job's model.

    MatMul and Gemm become MatMulNBits for ONNX Runtime; for OpenVINO and TensorRT, and for convolutions, a weight
    becomes its codes and a DequantizeLinear (blocked, opset 21, where it has groups).

    Raises:
        FewbitError: A spec that no node holds.
    """
    graph, whole, biases = job.model.graph, list[str](), Biases()
    for step, plan in enumerate(plans, 1):
        assert plan.scheme is not None
        layer = job.layers[plan.name]
        if not _groups_fit(job, plan, layer):
            if layer.kind in ("MatMul", "Gemm"):
                whole.append(plan.name)
            plan = _without_groups(plan)
        assert plan.scheme is not None
        spec = plan.scheme.weights
        if not spec.format.is_integer or spec.bits > 8:
            raise FewbitError(f"{plan.name}: weights of ONNX models are integers of at most 8 bits, not {spec}")
        codes, bias = rounded(job, plan)
        bias, before = biases.outside(job, layer, bias), set(graph.initializers)
        if layer.kind in ("MatMul", "Gemm") and job.target.name == "onnxruntime" and nbits.fits(spec):
            value = nbits.write_layer(graph, layer, codes, bias)
        else:
            _dequantized(job, plan, layer, codes)
            value = None if bias is None or job.inputs is None else qdq.replace_bias(graph, layer, bias)
        biases.note(layer, bias, value)
        job.tell(plan, codes, "float", bytes_since(graph, before), bias_too=value is not None)
        job.told_progress("quantize", step, len(plans))
    if whole:
        job.notes.append(
            f"{', '.join(whole)}: one scale a channel, as {job.target.name} takes whole groups only and the inputs of "
            f"{'this layer are' if len(whole) == 1 else 'these layers are'} no multiple of the group"
        )
    qdq.drop_unused(graph)
    biases.answer(job)


def _groups_fit(job: Job, plan: LayerPlan, layer: Layer) -> bool:
    """Whether the target has a node for a layer's groups: MatMulNBits fills up the last one, a blocked DequantizeLinear
    wants all of them whole, and no node knows groups along a kernel."""
    assert plan.scheme is not None
    spec = plan.scheme.weights
    if not isinstance(spec.granularity, PerGroup):
        return True
    if layer.kind not in ("MatMul", "Gemm"):
        return False
    packed = job.target.name == "onnxruntime" and nbits.fits(spec)
    inputs = layer.weight.const_value.shape[1 - layer.axis]
    return packed or int(inputs) % spec.granularity.size == 0


def _without_groups(plan: LayerPlan) -> LayerPlan:
    """The same with one scale a channel."""
    assert plan.scheme is not None
    spec = replace(plan.scheme.weights, granularity=PerChannel(0))
    return replace(plan, scheme=replace(plan.scheme, weights=spec))


def _dequantized(job: Job, plan: LayerPlan, layer: Layer, codes: QTensor) -> None:
    graph, name, grain = job.model.graph, layer.weight.name, codes.spec.granularity
    if isinstance(grain, PerGroup):
        if job.model.graph.opset_imports[""] < 21:
            raise FewbitError(
                f"{plan.name}: groups of {grain.size} fit neither MatMulNBits (16, 32, 64, 128 or 256) nor opset 21"
            )
        qdq.insert_blocks(graph, layer, codes, name)
    elif grain == PerChannel(0) or isinstance(grain, PerTensor):
        axis = layer.axis if codes.scale.dim() else None
        packed = codes.spec.bits <= 4 and job.model.graph.opset_imports[""] >= 21
        qdq.insert_constant(graph, layer.node, 1, static.in_file(layer, codes), axis, name, packed=packed)
    else:
        raise FewbitError(f"{plan.name}: no ONNX node holds weights of {codes.spec}")
