"""From a quantized model to the nodes of an integer graph, by ``torch.export``.

The model's own quantized layers stand in the exported program as ``fewbit::quantize_static`` followed by
``fewbit::conv`` or ``fewbit::linear``; their scales, codes and biases are read from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fewbit.errors import FewbitError
from fewbit.integer.ir import Affine, Node, Ref, Weight
from fewbit.integer.operators import read_operator
from fewbit.kernels.products import Geometry
from fewbit.kernels.weights import PackedMatrix, integer_matrix
from fewbit.numbers.spec import QSpec

_ATEN = torch.ops.aten
_FEWBIT = torch.ops.fewbit
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range", "_assert_true")
_SAME = {
    _ATEN.clone.default, _ATEN.contiguous.default, _ATEN.detach.default, _ATEN.alias.default, _ATEN.detach_.default,
    _ATEN.lift_fresh_copy.default, _ATEN.lift_fresh.default,
}  # fmt: skip
_DROPOUTS = {_ATEN.dropout.default, _ATEN.feature_dropout.default, _ATEN.alpha_dropout.default, _ATEN.dropout_.default}


@dataclass
class Capture:
    """What was read from a model.

    Attributes:
        inputs: Names of the user's inputs.
        outputs: Names of the outputs.
        nodes: In order; quantized layers read float values here, their quantizers are in ``wanted``.
        wanted: The quantizers that layers asked for, by the value they read and the layer's name.
        constants: Tensors that nodes read.
        output_tree: How the outputs lie in what the model returns.
        paths: The names that parameters, buffers and constants have in the model, by those they have here.
    """

    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    wanted: dict[str, dict[str, Affine]] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    output_tree: Any = None
    paths: dict[str, str] = field(default_factory=dict)


def capture(model: nn.Module, example: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Capture:
    """Read the graph of a model.

    Args:
        model: From ``fewbit.quantize`` or a float model, in evaluation mode.
        example: The model's positional arguments.
        kwargs: Its named arguments.

    Raises:
        FewbitError: ``torch.export`` cannot follow the model's forward; the message says what it stumbled over.
    """
    program = _export(model, tuple(example), dict(kwargs or {}))
    return _Reader(program).read()


def _export(model: nn.Module, example: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The exported program: any batch size where the model allows it, else the example's."""
    trees = torch.utils._pytree

    def batch_free(leaf: Any) -> Any:
        return {0: torch.export.Dim.AUTO} if isinstance(leaf, Tensor) and leaf.dim() > 1 and len(leaf) > 1 else None

    errors = []
    dynamic = trees.tree_map(batch_free, (example, kwargs))
    for shapes in ((*dynamic[0],) if not kwargs else None, None):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                program = torch.export.export(model, example, kwargs, dynamic_shapes=shapes)
                return program.run_decompositions({}) if _writes(program) else program
        except Exception as error:  # noqa: BLE001  the model's own Python runs on symbols: anything can come of it
            errors.append(error)
    lines = str(errors[-1]).strip().splitlines() or [type(errors[-1]).__name__]
    raise FewbitError(f"torch.export cannot follow the model: {lines[0]}") from errors[-1]


def _writes(program: Any) -> bool:
    """Whether an operator works in place, which the functional form of the program no longer does."""
    schemas = (getattr(node.target, "_schema", None) for node in program.graph.nodes if node.op == "call_function")
    return any(schema is not None and schema.is_mutable for schema in schemas)


class _Reader:
    """Turns the nodes of an exported program into ours, one after the other."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.found = Capture(output_tree=program.call_spec.out_spec)
        self.same: dict[str, str] = {}  # a value that is another one
        self.codes: dict[str, tuple[str, Affine]] = {}  # quantized values: what of, and how

    def read(self) -> Capture:
        """All nodes."""
        signature = self.program.graph_signature
        held = {**self.program.state_dict, **self.program.constants}
        owned = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for name, path in owned.items():
            self.found.paths[name] = path
            self.found.constants[name] = held[path].detach()
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in signature.user_inputs:
                self.found.inputs.append(node.name)
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.found.outputs = [self._name(value) for value in node.args[0]]
        used = {name for node in self.found.nodes for name in node.inputs}
        self.found.constants = {k: v for k, v in self.found.constants.items() if k in used}
        return self.found

    def _name(self, value: Any) -> str:
        if not isinstance(value, fx.Node):
            raise FewbitError("an output of the model is no tensor; wrap the model so that it returns tensors")
        return self.same.get(value.name, value.name)

    def _call(self, node: fx.Node) -> None:
        target: Any = node.target
        if any(check in str(target) for check in _CHECKS):
            return
        if self._is_same(node, target):
            self.same[node.name] = self._name(node.args[0])
        elif target == _FEWBIT.quantize_static.default:
            self._quantizer(node)
        elif target in (_FEWBIT.conv.default, _FEWBIT.linear.default) and self._layer(node, target):
            pass
        else:
            self.found.nodes.append(self._other(node, target))

    def _is_same(self, node: fx.Node, target: Any) -> bool:
        if target in _SAME:
            return True
        if target in _DROPOUTS:
            return not node.args[2]
        if str(target).startswith("aten.to.") or target == _ATEN._to_copy.default:
            before = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
            after = node.meta.get("val")
            return isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype
        return False

    def _constant(self, value: Any) -> Tensor | None:
        return None if value is None else self.found.constants[self._name(value)]

    def _quantizer(self, node: fx.Node) -> None:
        x, scale, zero_point, spec = node.args
        parsed = QSpec.parse(str(spec))
        zero = self._constant(zero_point)
        affine = Affine(
            float(self._constant(scale)),  # type: ignore[arg-type]
            0 if zero is None else int(zero),
            int(parsed.qmin),
            int(parsed.qmax),
        )
        self.codes[node.name] = (self._name(x), affine)

    def _layer(self, node: fx.Node, target: Any) -> bool:
        """A quantized layer with a static input quantizer and one scale an output channel; else False."""
        codes: Any = node.args[0]
        args: Any = node.args
        if codes.name not in self.codes:
            return False
        weights, scale, zero_point = (self._constant(value) for value in args[3:6])
        spec, rows, columns = QSpec.parse(args[6]), args[7], args[8]
        source, affine = self.codes[codes.name]
        if weights is None or scale is None or not spec.format.is_integer or spec.bits > 8 or affine.qmax > 255:
            return self._opaque(source, affine, node)
        matrix = integer_matrix(PackedMatrix(weights, scale, zero_point, spec, (rows, columns)))
        if matrix.zero_point is not None or matrix.scale.shape[1] != 1:
            return self._opaque(source, affine, node)
        bias = self._constant(args[9])
        geometry = _geometry(args[10:]) if target == _FEWBIT.conv.default else None
        shape = (rows, columns) if geometry is None else (rows, -1, *geometry.kernel)
        weight = Weight(
            matrix.codes.reshape(shape).to(torch.int8),
            matrix.scale[:, 0].contiguous(),
            torch.zeros(rows) if bias is None else bias.to(torch.float32),
        )
        layer = self.found.paths[args[1].name].removesuffix(".input_quantizer.scale").removesuffix(".weight")
        op = "linear" if geometry is None else "conv"
        self.found.nodes.append(Node(op, node.name, (source,), layer=layer, weight=weight, geometry=geometry))
        self.found.wanted.setdefault(source, {})[layer] = affine
        return True

    def _opaque(self, source: str, affine: Affine, node: fx.Node) -> bool:
        """Leave a layer to its own operator: weights with zero points or groups, or wide codes."""
        quantize: Any = node.args[0]
        if not any(made.name == quantize.name for made in self.found.nodes):
            self.found.nodes.append(self._other(quantize, quantize.target))
        return False

    def _other(self, node: fx.Node, target: Callable[..., Any]) -> Node:
        inputs: list[str] = []

        def renamed(leaf: Any) -> Any:
            if not isinstance(leaf, fx.Node):
                return leaf
            inputs.append(self._name(leaf))
            return Ref(inputs[-1])

        args, kwargs = torch.utils._pytree.tree_map(renamed, (tuple(node.args), dict(node.kwargs)))
        value = node.meta.get("val")
        made = Node("float", node.name, tuple(inputs), target, args, kwargs)
        if not isinstance(value, Tensor) and not isinstance(value, list | tuple):
            made.op = "shape"
            return made
        made.detail["list"] = isinstance(value, list | tuple)
        if node.args:
            first: Any = node.args[0]
            before = first.meta.get("val") if isinstance(first, fx.Node) else None
            read_operator(made, before, value, self.found.constants)
        return made


def _geometry(args: Sequence[Any]) -> Geometry:
    kernel, stride, before, after, dilation, groups = args
    return Geometry(tuple(kernel), tuple(stride), tuple(zip(before, after)), tuple(dilation), int(groups))
