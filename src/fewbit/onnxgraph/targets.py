"""What each runtime computes on integers, and how a graph must be written for it to do so. One table a target.

==========  ===========================================================================================================
products    Nodes with a constant weight that have an integer kernel.
integer     Other nodes with an integer kernel that has a scale of its own for its output.
carriers    Nodes that move values and do not change them: input and output share one quantizer.
coded_out   Products whose integer kernel writes codes only; without a quantizer on their output they run in float.
==========  ===========================================================================================================

ONNX Runtime (1.32, CPU): its selectors turn DQ → op → Q into QLinearConv, QLinearAdd, … and drop Q/DQ around carriers.
OpenVINO (2026): Q/DQ become FakeQuantize; activation functions after a convolution are fused into it, so no quantizer
stands between the two. TensorRT (10, 11): zero points 0; a residual addition fuses with the convolution on one of its
sides, so that side stays float and the other one and the sum carry codes; biases stay float.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.errors import FewbitError

_CARRIERS = frozenset(
    [
        "MaxPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Identity",
        "DepthToSpace",
        "SpaceToDepth",
        "Slice",
        "Split",
        "Gather",
        "Expand",
        "Tile",
        "Concat",
        "Resize",
        "Upsample",
    ]
)


@dataclass(frozen=True)
class Target:
    """One runtime's rules.

    Attributes:
        name: What the user calls it.
        products: See the module.
        integer: See the module.
        carriers: See the module.
        coded_out: See the module.
        activations: Spec of activations, for the scheme's own uint8.
        bias_codes: Whether biases are int32 at ``s_x · s_w``.
        one_side: Whether one side of an addition stays float when a product computes it.
        absorbs: Whether a Relu or Clip that the codes' range implies is left out.
    """

    name: str
    products: frozenset[str]
    integer: frozenset[str]
    carriers: frozenset[str]
    coded_out: frozenset[str]
    activations: str
    bias_codes: bool
    one_side: bool
    absorbs: bool


_TARGETS = {
    "onnxruntime": Target(
        "onnxruntime",
        products=frozenset({"Conv", "MatMul", "Gemm"}),
        integer=frozenset({"Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"}),
        carriers=_CARRIERS,
        coded_out=frozenset({"Conv"}),
        activations="uint8/tensor/asym",
        bias_codes=True,
        one_side=False,
        absorbs=True,
    ),
    "openvino": Target(
        "openvino",
        products=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
        integer=frozenset({"Add", "AveragePool", "GlobalAveragePool"}),
        carriers=_CARRIERS,
        coded_out=frozenset(),
        activations="uint8/tensor/asym",
        bias_codes=True,
        one_side=False,
        absorbs=True,
    ),
    "tensorrt": Target(
        "tensorrt",
        products=frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"}),
        integer=frozenset({"Add", "AveragePool", "GlobalAveragePool"}),
        carriers=_CARRIERS,
        coded_out=frozenset(),
        activations="int8/tensor/sym",
        bias_codes=False,
        one_side=True,
        absorbs=False,
    ),
}


def get(name: str) -> Target:
    """The target of a name.

    Raises:
        FewbitError: There is none; the message lists what there is.
    """
    if name not in _TARGETS:
        raise FewbitError(f"no target is called {name!r}; there are {', '.join(_TARGETS)}")
    return _TARGETS[name]


def names() -> list[str]:
    """The targets there are."""
    return list(_TARGETS)
