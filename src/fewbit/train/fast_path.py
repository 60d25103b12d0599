"""Torch's fused transformer layers read weights past their layers; fake quantization needs the layers called.

In evaluation without gradients ``nn.TransformerEncoderLayer`` hands the weights of its linear layers to one fused
operator. It does not when a module inside has a hook, so a hook that does nothing keeps it on the plain path.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def block_fused_layers(model: nn.Module) -> None:
    """Make fused layers call their parts."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.register_forward_pre_hook(_plain)


def unblock_fused_layers(model: nn.Module) -> None:
    """Undo :func:`block_fused_layers`."""
    for module in model.modules():
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _plain]:
            del hooks[key]


def _plain(_module: nn.Module, _args: Any) -> None:
    """Nothing: being there is enough."""
