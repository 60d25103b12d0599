"""The float model as quantizing wants it: constants folded, batch norm and affine steps inside convolutions.

Names of the model's inputs, outputs and of the tensors that stay are kept. Every step leaves the float result as it
was up to rounding.
"""

from __future__ import annotations

from typing import Any

from fewbit.errors import FewbitError, require
from fewbit.onnxgraph import fold
from fewbit.onnxgraph.upgrade import _silent

_ROUNDS = 2


def simplify(model: Any) -> list[str]:
    """Simplify in place.

    Returns:
        Notes: what was folded.
    """
    optimizer = require("onnxscript.optimizer", "onnx")
    common = require("onnx_ir.passes.common", "onnx")
    inputs = [value.name for value in model.graph.inputs if not value.is_initializer()]
    try:
        with _silent("onnxscript", "onnx_ir"):
            common.RemoveInitializersFromInputsPass()(model)
            common.InlinePass()(model)
            _name_nodes(model)
            for _ in range(_ROUNDS):
                optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=_should_fold)
                common.RemoveUnusedNodesPass()(model)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            common.IdentityEliminationPass()(model)
    except Exception as error:  # the passes raise what their checks raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FewbitError(f"the graph is broken: {line}") from error
    if [value.name for value in model.graph.inputs] != inputs:
        raise FewbitError("simplifying changed the model's inputs; please report this")
    counts = fold.fold_all(model)
    with _silent("onnxscript", "onnx_ir"):
        common.RemoveUnusedNodesPass()(model)
        common.ShapeInferencePass(data_prop=False)(model)
    told = [f"{count} {what}" for what, count in counts.items() if count]
    return [f"folded into the layers before them: {', '.join(told)}"] if told else []


def _should_fold(node: Any) -> bool | None:
    # The folder leaves this one alone, and with it the paddings that exporters compute from it.
    return True if node.op_type == "ConstantOfShape" else None


def _name_nodes(model: Any) -> None:
    """A node without a name gets that of its output, as a user meets it in other tools; one of a subgraph another than
    all of the main graph, whose nodes are found by name."""
    taken = {node.name for node in model.graph if node.name}
    for node in model.graph:
        if not node.name:
            name = next((value.name for value in node.outputs if value.name), node.op_type)
            node.name = name if name not in taken else f"{node.op_type}_{name}"
            taken.add(node.name)
    for inner in model.graph.subgraphs():
        for node in inner:
            if node.name in taken:
                node.name = f"{inner.name or 'inner'}/{node.name}"
