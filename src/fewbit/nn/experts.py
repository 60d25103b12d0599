"""Experts of a mixture as plain linears.

transformers holds the experts of a layer as two parameters with an axis for the expert, which no layer rule matches.
:func:`split_experts` puts one module with linears for each expert in their place, under the names that checkpoints
have: ``experts.3.gate_proj``, ``up_proj`` and ``down_proj``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """A gated feed-forward network: ``down(act(gate(x)) · up(x))``."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate, up, down
        self.act_fn = act

    def forward(self, x: Tensor) -> Tensor:
        """``[tokens, hidden]`` in and out."""
        inner: Tensor = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        out: Tensor = self.down_proj(inner)
        return out


class SplitExperts(nn.ModuleList):
    """The experts of a layer, each run on the tokens that the router gave it."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts.

        Args:
            hidden_states: ``[tokens, hidden]``.
            top_k_index: int64 ``[tokens, k]``, the experts of each token; a number that is no expert counts for none.
            top_k_weights: ``[tokens, k]``.
        """
        result = torch.zeros_like(hidden_states)
        for number in torch.unique(top_k_index).tolist():
            if not 0 <= number < len(self):
                continue
            token, place = torch.where(top_k_index == number)
            out = self[number](hidden_states[token]) * top_k_weights[token, place, None]
            result.index_add_(0, token, out.to(result.dtype))
        return result


def split_experts(model: nn.Module) -> int:
    """Split the fused experts of every layer, in place; also on the meta device.

    Returns:
        How many layers were split.
    """
    fused = [(name, module) for name, module in model.named_modules() if is_fused(module)]
    for name, module in fused:
        parent, _, key = name.rpartition(".")
        setattr(model.get_submodule(parent), key, _split(module))
    return len(fused)


def has_split_experts(model: nn.Module) -> bool:
    """Whether a model's experts were split."""
    return any(isinstance(module, SplitExperts) for module in model.modules())


def is_fused(module: nn.Module) -> bool:
    """Whether a module holds gated experts as two parameters ``[experts, 2·inner, hidden]`` and ``[experts, hidden,
    inner]``, computed in transformers' usual way: others (with biases, transposed, of another gate) stay fused."""
    gate_up, down = module._parameters.get("gate_up_proj"), module._parameters.get("down_proj")
    if gate_up is None or down is None or gate_up.dim() != 3 or down.dim() != 3 or not hasattr(module, "act_fn"):
        return False
    wanted = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    usual = all(getattr(module, key, None) is value for key, value in wanted.items())
    gate = getattr(type(module), "_apply_gate", None)
    return usual and not getattr(module, "has_post_expert_norm", False) and _is_default(gate)


def _is_default(gate: Any) -> bool:
    return getattr(gate, "__name__", "") == "_default_apply_gate"


def _split(module: nn.Module) -> SplitExperts:
    gate_up, down = cast(Tensor, module.gate_up_proj), cast(Tensor, module.down_proj)
    act = cast(Callable[[Tensor], Tensor], module.act_fn)
    made = SplitExperts()
    for both, last in zip(gate_up.detach(), down.detach()):
        gate, up = both.chunk(2, dim=0)
        made.append(Expert(_linear(gate), _linear(up), _linear(last), act))
    return made.train(module.training)


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta", dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=weight.requires_grad)
    return linear
