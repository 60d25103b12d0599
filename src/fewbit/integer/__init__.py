"""Whole networks in integers: the graph of a quantized model, where every tensor between quantized layers is an
integer.

:mod:`~fewbit.integer.capture` reads the graph from ``torch.export``, :mod:`~fewbit.integer.place` decides which tensors
are integers and which share a quantizer, :mod:`~fewbit.integer.lower` makes the numbers; then
:mod:`~fewbit.integer.fast` runs it in torch, :mod:`~fewbit.integer.fixed` in integer arithmetic alone
(arXiv 1712.05877), and :mod:`~fewbit.integer.qdq` writes it as ONNX with Q/DQ pairs for other engines.
"""

from fewbit.integer.build import integer_network
from fewbit.integer.finish import finish, float_layers, is_network
from fewbit.integer.ir import Affine, Network, Node
from fewbit.integer.replay import Replay

__all__ = ["Affine", "Network", "Node", "Replay", "finish", "float_layers", "integer_network", "is_network"]
