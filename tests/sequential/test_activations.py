"""Activation functions as tables while a block runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbit
from fewbit.kernels import dispatch
from fewbit.sequential import activations, blocks, capture, solve
from fewbit.sequential.activations import tabled
from fewbit.sequential.forward import computing

needs_kernel = pytest.mark.skipif(dispatch.native() is None, reason="the compiled module is not there")


def model(*functions: nn.Module) -> nn.Module:
    return nn.ModuleDict({"block": nn.Sequential(nn.Linear(8, 8), *functions)})


@needs_kernel
@pytest.mark.parametrize("kind", activations._TORCHS)
def test_torchs_functions_keep_their_bits(kind) -> None:
    whole = model(kind())
    stands = tabled(whole, "block", "bfloat16")
    assert list(stands) == ["block.1"]
    x = torch.randn(64, 8)
    with torch.no_grad(), computing("bfloat16"):
        before = whole["block"](x)
        with capture.replaced(whole, stands):
            after = whole["block"](x)
        assert type(whole["block"][1]) is kind
    assert before.dtype == after.dtype
    assert torch.equal(before, after)


@needs_kernel
@pytest.mark.parametrize("name", activations._TRANSFORMERS)
def test_those_of_transformers_keep_their_bits(name) -> None:
    kind = getattr(pytest.importorskip("transformers.activations"), name)
    whole, x = model(kind()), torch.randn(64, 8)
    stands = tabled(whole, "block", "bfloat16")
    assert list(stands) == ["block.1"]
    with torch.no_grad(), computing("bfloat16"):
        before = whole["block"](x)
        with capture.replaced(whole, stands):
            assert torch.equal(before, whole["block"](x))


def test_none_where_it_would_not_be_the_same_function() -> None:
    class Mine(nn.GELU):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    hooked = nn.GELU()
    hooked.register_forward_hook(lambda *_: None)
    assert not tabled(model(Mine(), hooked, nn.Softmax(-1), nn.PReLU(), nn.Dropout()), "block", "bfloat16")
    assert not tabled(model(nn.GELU()), "block", "float32")


@needs_kernel
def test_other_inputs_go_to_the_function_itself() -> None:
    whole = model(nn.SiLU())
    (stand,) = tabled(whole, "block", "bfloat16").values()
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    stand(x).sum().backward()
    assert x.grad is not None
    half = torch.randn(5).bfloat16().requires_grad_()
    stand(half).sum().backward()
    assert half.grad is not None


@needs_kernel
def test_a_calibration_uses_them_and_leaves_the_models_own(monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    torch.manual_seed(0)
    small = transformers.LlamaForCausalLM(config).eval()
    data = [torch.randint(0, 64, (1, 16)) for _ in range(4)]
    asked, real = [], activations.lookup
    monkeypatch.setattr(activations, "lookup", lambda table, x: asked.append(x.shape) or real(table, x))
    monkeypatch.setattr(solve, "forward_type", lambda _: "bfloat16")

    def codes() -> list[torch.Tensor]:
        made = fewbit.quantize(small, "W4A16-g16", data, algorithm="gptq")
        return [t for name, t in sorted(made.state_dict().items()) if "mlp" in name]

    tables = codes()
    assert asked
    monkeypatch.setattr(blocks, "tabled", lambda *_: {})
    asked.clear()
    assert all(torch.equal(a, b) for a, b in zip(tables, codes(), strict=True))
    assert not asked
