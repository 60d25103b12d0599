"""Low-rank adapters on a frozen quantized base (LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314).

The base stays in its packed codes; adapters ``A [r, K]`` and ``B [N, r]`` train in float. Two places for them:

- inside the quantizer (after LR-QAT, arXiv 2406.06385): the layer computes with ``Q(Ŵ + (α/r)·BA)`` on the base's own
  grid, straight through the rounding. Conversion changes codes and nothing else: the merge is exact.
- beside the base (QLoRA): ``x Ŵᵀ + (α/r)·(x Aᵀ) Bᵀ``. The sum has no codes in general. Conversion merges it where it
  has (an adapter that was not trained, or whose product lies on the grid) and else keeps the float branch.
"""

from __future__ import annotations

import copy
import fnmatch
import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.kernels.weights import PackedMatrix
from fewbit.nn.info import attach_info, info
from fewbit.nn.layers import AdaptedLinear, QuantLinear, low_rank
from fewbit.nn.quantizers import DynamicQuantizer, StaticQuantizer
from fewbit.nn.swap import replace_module
from fewbit.nn.weight import PackedWeight, QuantizedWeight
from fewbit.numbers import affine
from fewbit.numbers.qtensor import QTensor
from fewbit.train.dynamic import DynamicFake
from fewbit.train.fingerprint import fingerprint
from fewbit.train.gradient import substitute
from fewbit.train.static_input import fake_input

_EXACT = 1e-6  # of the largest weight: float32 rounding of a sum


def add_lora(
    model: nn.Module, rank: int = 8, alpha: float = 16.0, *, match: str = "*", inside: bool = True
) -> nn.Module:
    """A copy of a quantized model whose linear layers have adapters; nothing else trains.

    Args:
        model: Made by :func:`fewbit.quantize`, such as in W4A16-g64; it is not changed.
        rank: r.
        alpha: The adapters' product counts ``alpha / rank`` times.
        match: A glob of the layers' names.
        inside: Adapters inside the quantizer, whose merge is exact; otherwise beside the base.

    Returns:
        The model in training mode; :func:`fewbit.convert` merges.

    Raises:
        FewbitError: No quantized linear layer matches, or the rank is not positive.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise FewbitError(f"an adapter has a rank of at least 1, a whole number, not {rank!r}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise FewbitError(f"alpha is a finite number, not {alpha!r}")
    if has_lora(model) or any(isinstance(module, AdaptedLinear) for module in model.modules()):
        raise FewbitError("the model has adapters already; convert it, or add them to the quantized model")
    work = copy.deepcopy(model).requires_grad_(False)
    names = [n for n, m in work.named_modules() if isinstance(m, QuantLinear) and fnmatch.fnmatchcase(n, match)]
    if not names:
        raise FewbitError(f"no quantized linear layer matches {match!r}; quantize the model first")
    generator = torch.Generator().manual_seed(0)
    for name in names:
        layer = work.get_submodule(name)
        assert isinstance(layer, QuantLinear)
        work = replace_module(work, layer, LoraLinear(layer, rank, alpha, inside, generator))
    known = info(model)
    if known is not None:
        attach_info(work, copy.deepcopy(known))
    return work.train()


class LoraLinear(nn.Module):
    """A quantized linear layer with an adapter.

    Attributes:
        base: Its packed codes stay as they are.
        down: A, ``[rank, K]``, random.
        up: B, ``[N, rank]``, zero at the start, so that training starts from the base.
    """

    fewbit_in_training = True

    def __init__(
        self, base: QuantLinear, rank: int, alpha: float, inside: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.base, self.factor, self.inside = base, alpha / rank, inside
        device = base.weight.device
        start = torch.randn(rank, base.in_features, generator=generator) / math.sqrt(base.in_features)
        self.down = nn.Parameter(start.to(device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=device))

    def forward(self, input: Tensor) -> Tensor:
        """As the base's."""
        if not self.inside:
            return self.base.forward(input) + low_rank(input, self.down, self.up, self.factor)
        if self.training:
            return self._simulated(input)
        exact = self._deployed(input)
        return substitute(self._simulated(input), exact) if torch.is_grad_enabled() else exact

    def _simulated(self, x: Tensor) -> Tensor:
        t = self.base.weight_qtensor()
        zero = None if t.zero_point is None else t.zero_point.float()
        weight = affine.straight_through(t.dequantize() + self.delta(), t.spec, t.scale, zero)
        bias = self.base.bias
        return F.linear(self._input(x), weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def _input(self, x: Tensor) -> Tensor:
        quantizer = self.base.input_quantizer
        if isinstance(quantizer, StaticQuantizer):
            return fake_input(x, quantizer.spec, quantizer.scale, quantizer.zero_point, learn_rounding=False)
        return DynamicFake(quantizer.spec)(x) if isinstance(quantizer, DynamicQuantizer) else x

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _deployed(self, x: Tensor) -> Tensor:
        state = fingerprint([self.down, self.up])
        known = self.__dict__.get("_deployed_as")
        if known is None or known[0] != state:
            known = state, with_codes(self.base, self.merged())
            self.__dict__["_deployed_as"] = known
        return cast(Tensor, known[1](x))

    def delta(self) -> Tensor:
        """``(α/r)·BA``, float32 ``[N, K]``."""
        return (self.up.float() @ self.down.float()) * self.factor

    @torch.no_grad()
    def merged(self) -> QTensor:
        """The nearest codes of ``Ŵ + (α/r)·BA`` on the base's grid."""
        t: QTensor = self.base.weight_qtensor()
        return affine.quantize(t.dequantize() + self.delta(), t.spec, scale=t.scale, zero_point=t.zero_point)

    @torch.no_grad()
    def merges_exactly(self) -> bool:
        """Whether the merged codes compute what the layer computes."""
        if self.inside:
            return True
        exact = self.base.weight_qtensor().dequantize() + self.delta()
        return bool((self.merged().dequantize() - exact).abs().max() <= _EXACT * exact.abs().max())

    def beside(self) -> AdaptedLinear:
        """The layer as it is deployed without merging; the base is shared."""
        down, up = self.down.detach().clone(), self.up.detach().clone()
        return AdaptedLinear(self.base.weight, self.base.bias, down, up, self.factor).eval()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_deployed_as"}


def with_codes(base: QuantLinear, codes: QTensor) -> QuantLinear:
    """The quantized layer with other codes."""
    old = base.weight
    packed = PackedWeight(PackedMatrix.pack(codes))
    weight = QuantizedWeight(packed, old.input_quantizer, old.kernel, old.dtype).to(old.device)
    return QuantLinear(weight, base.bias).eval()


def merge_lora(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Merge every adapter that merges exactly, in place; the others stay beside their base.

    Returns:
        The model, and the names of those others.
    """
    kept = []
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLinear):
            if layer.merges_exactly():
                model = replace_module(model, layer, with_codes(layer.base, layer.merged()))
            else:
                model = replace_module(model, layer, layer.beside())
                kept.append(name)
    return model, kept


def has_lora(model: nn.Module) -> bool:
    """Whether the model has adapters."""
    return any(isinstance(module, LoraLinear) for module in model.modules())
