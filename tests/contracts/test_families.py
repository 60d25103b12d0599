"""A tiny random model of every family is quantized end to end: folded, rounded with data, run, saved, loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import CAUSAL, FAMILIES, inputs, output, tiny
from torch import nn

import fewbit
from fewbit.models import layout
from fewbit.nn import info, quantized_layers
from fewbit.nn.experts import split_experts
from fewbit.recipe import Recipe, Rule


def recipe(model: nn.Module, scheme: str) -> Recipe:
    """The blocks' linears alone, whose errors are what the algorithms lower."""
    split_experts(model)
    wanted = {name for block in layout(model).blocks for group in block.groups for name in group.linears}
    rules = [Rule(match=name, scheme=scheme) for name in sorted(wanted)]
    return Recipe(scheme, rules=(*rules, Rule(match="*", skip=True)))


@pytest.mark.parametrize("family", FAMILIES)
def test_awq_and_smoothquant_end_to_end(family: str, tmp_path: Path) -> None:
    fewer = {"num_hidden_layers": 1} if family in ("mixtral", "qwen3_moe") else {}  # experts enough
    model = tiny(family, **fewer)
    batches = [inputs(family, seed) for seed in range(1, 3)]
    expected = output(model, family)
    for scheme, algorithm, limit in (("W4A16-g16", "awq", 0.5), ("W8A8-dynamic", "smoothquant", 0.12)):
        q = fewbit.quantize(model, recipe(tiny(family, **fewer), scheme), batches, algorithm=algorithm)
        found = output(q, family)
        assert float((found - expected).norm() / expected.norm()) < limit, scheme
        made = info(q)
        assert made is not None
        assert any(note.startswith(f"{algorithm} scaled") for note in made.notes)
        blocks = tuple(f"{block.name}." for block in layout(model).blocks)
        assert all(name.startswith(blocks) for name in quantized_layers(q))
        assert len(quantized_layers(q)) >= sum(len(group.linears) for b in layout(model).blocks for group in b.groups)
    fewbit.save(q, tmp_path / "saved")
    assert torch.equal(output(fewbit.load(tmp_path / "saved"), family), found)


@pytest.mark.parametrize("algorithm", ["rotation+gptq", "awq+gptq", "rotation+awq+hqq"])
def test_steps_stand_before_any_rounding(algorithm: str) -> None:
    model = tiny("llama")
    batches = [inputs("llama", seed) for seed in range(1, 4)]
    q = fewbit.quantize(model, recipe(tiny("llama"), "W4A16-g16"), batches, algorithm=algorithm)
    expected = output(model, "llama")
    assert float((output(q, "llama") - expected).norm() / expected.norm()) < 0.5


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("scheme", ["W4A16-g16", "W4A8-dynamic", "W8A8-dynamic"])
def test_quantized_models_write_text(family: str, scheme: str) -> None:
    q = fewbit.quantize(tiny(family), scheme, algorithm="rtn")
    ids = inputs(family)["input_ids"]
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    written = q.generate(ids, **settings)
    assert written.shape == (2, 18)
    with torch.no_grad():  # what comes token by token is what one pass says
        again = q(written[:, :-1]).logits[:, 11:].argmax(-1)
    assert float((again == written[:, 12:]).float().mean()) > 0.8
