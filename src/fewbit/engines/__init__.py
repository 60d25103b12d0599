"""Engines that run an integer network. One a file; the file's name is the engine's name.

Each module has ``installed() -> bool`` and ``Engine(network, example, threads)``, which is called with the network's
inputs and gives its outputs, and whose ``codes(*inputs)`` gives the codes of every tensor that is an integer. The
numbers are the same in all of them: one network, and outputs that differ by what an engine's own rounding of a float
product does.
"""

from __future__ import annotations

from fewbit.engines.deployed import Deployed, deploy
from fewbit.plugins import Plugins

__all__ = ["Deployed", "deploy", "get", "names"]

_PLUGINS = Plugins(__name__, "Engine", "engine")
names, get = _PLUGINS.names, _PLUGINS.get
