"""Faster or not at all: measure on the engine a model is for, and leave in float each region that integers do not
speed up.

A region is a set of layers joined by tensors that carry codes: between two regions there is a float tensor in any
case, so that either may change sides without a new Q/DQ pair. Regions are tried one after the other, the largest
first: two models are timed in turns, with and without the region in integers, and the faster one goes on. A region
stays in integers only where that gains more than the share ``GAIN``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fewbit.errors import FewbitError, require
from fewbit.evaluate.speed import interleaved_times
from fewbit.onnxgraph import file, layers, placement, static
from fewbit.onnxgraph.session import Feeds, Runner

if TYPE_CHECKING:
    from torch import Tensor

    from fewbit.numbers.qtensor import QTensor
    from fewbit.onnxgraph.codes import Codes
    from fewbit.onnxgraph.targets import Target

GAIN = 0.01
ROUNDS = 15


@dataclass(frozen=True)
class Region:
    """What was measured for one region, in seconds of the whole model.

    Attributes:
        layers: The names of its layers.
        integers: The model with the region in integers.
        floats: The model with it in float.
        kept: Whether it stays in integers.
    """

    layers: tuple[str, ...]
    integers: float
    floats: float
    kept: bool


@dataclass(frozen=True)
class Solved:
    """Everything that a static graph is written from, for all layers.

    Attributes:
        model: The simplified float model.
        target: The runtime's rules.
        places: The placement for all layers.
        activations: By group.
        weights: By layer.
        biases: By layer.
    """

    model: Any
    target: Target
    places: placement.Placement
    activations: dict[str, Codes]
    weights: dict[str, QTensor]
    biases: dict[str, Tensor]

    def written(self, names: set[str]) -> Any:
        """A new model with these layers in integers; the others are as they were."""
        model = self.model.clone()
        chosen = [layer for layer in layers.find(model) if layer.name in names]
        if not chosen:
            return model
        places = placement.place(model, chosen, self.target)
        codes = {root: self.activations[self.places.group[root]] for root in places.observed}
        static.write_static(model, places, self.target, codes, self.weights, self.biases)
        return model


def choose(solved: Solved, feeds: Feeds, tell: Callable[[str, int, int], None]) -> list[Region]:
    """Decide for each region.

    Args:
        solved: The model and its codes.
        feeds: One input to time the models on.
        tell: Called with (stage, regions done, regions in all).

    Raises:
        FewbitError: The target's engine is not on this machine.
    """
    engine = _engine(solved.target.name)
    kept = {layer.name for layer in solved.places.layers}
    found = regions(solved.places, solved.target)
    decided = []
    for done, names in enumerate(found, 1):
        models = [solved.written(kept), solved.written(kept - set(names))]
        calls = [engine(file.serialize(model), feeds) for model in models]
        integers, floats = (timing.median for timing in interleaved_times(calls, ROUNDS, 3))
        keep = integers < (1 - GAIN) * floats
        if not keep:
            kept -= set(names)
        decided.append(Region(names, integers, floats, keep))
        tell("measure regions", done, len(found))
    return decided


def regions(places: placement.Placement, target: Target) -> list[tuple[str, ...]]:
    """Layers joined by coded tensors, the largest set first."""
    parent: dict[str, str] = {}
    coded = {id(value) for value in places.coded.values()}
    nodes = {layer.node.name: layer.node for layer in places.layers}
    for node in nodes.values():
        _root(parent, node.name)
    for value in places.coded.values():
        around = [use.node.name for use in value.uses() if _on_codes(use.node, places, target, coded)]
        maker = value.producer()
        while maker is not None and maker.op_type in ("Relu", "Clip"):
            maker = maker.inputs[0].producer()
        if maker is not None and _on_codes(maker, places, target, coded):
            around.append(maker.name)
        for name in around[1:]:
            parent[_root(parent, name)] = _root(parent, around[0])
    found: dict[str, list[str]] = {}
    for name in nodes:
        found.setdefault(_root(parent, name), []).append(name)
    return sorted((tuple(names) for names in found.values()), key=lambda names: (-len(names), names))


def _on_codes(node: Any, places: placement.Placement, target: Target, coded: set[int]) -> bool:
    carried = placement.carries(node, target) and any(id(value) in coded for value in node.outputs)
    return carried or node.name in places.nodes


def _engine(target: str) -> Callable[[bytes, Feeds], Callable[[], object]]:
    if target == "onnxruntime":
        return _onnxruntime
    if target == "openvino":
        require("openvino", "openvino")
        return _openvino
    raise FewbitError(f"{target} cannot be measured on this machine; use --target onnxruntime or openvino")


def _onnxruntime(model: bytes, feeds: Feeds) -> Callable[[], object]:
    runner = Runner(model, threads=torch.get_num_threads())
    return lambda: runner.run(feeds)


def _openvino(model: bytes, feeds: Feeds) -> Callable[[], object]:
    core = require("openvino", "openvino").Core()
    config = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(model), "CPU", config)
    arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    return lambda: compiled(arrays)


def _root(parent: dict[str, str], name: str) -> str:
    while parent.setdefault(name, name) != name:
        name = parent[name]
    return name
