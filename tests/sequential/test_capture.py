"""Blocks run one after another with captured calls give the model's own hidden states."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, inputs, tiny
from torch import nn

from fewbit.errors import FewbitError
from fewbit.models import layout
from fewbit.sequential.capture import Finished, Interned, capture, finish, run
from fewbit.sequential.windows import windows


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_run_as_in_the_model(family: str) -> None:
    model = tiny(family)
    (window,) = windows([inputs(family, batch=1)], model.main_input_name)
    finished: list[Finished] = []
    seen = {}
    last = [stack[-1].name for stack in layout(model).stacks]
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, _a, out, name=name: seen.update({name: out}))
        for name in last
    ]
    run(model, window)
    for hook in hooks:
        hook.remove()
    for stack in layout(model).stacks:
        names = tuple(block.name for block in stack)
        found = capture(model, window, names, finished, Interned())
        hidden = found.hidden
        assert hidden is not None
        for name, call in zip(names, found.calls):
            hidden = call.run(model.get_submodule(name), hidden)
        torch.testing.assert_close(hidden, seen[names[-1]], rtol=1e-5, atol=1e-5)
        finished.append(Finished(names, found.form, hidden))


def test_what_is_behind_the_blocks_sees_their_stored_output() -> None:
    model = tiny("llama")
    (window,) = windows([inputs("llama", batch=1)])
    names = tuple(block.name for block in layout(model).stacks[0])
    stored = torch.full((1, 12, 32), 2.0)
    got = []
    hook = model.model.norm.register_forward_pre_hook(lambda _m, args: got.append(args[0]))
    finish(model, window, [Finished(names, stored, stored)])
    hook.remove()
    assert torch.equal(got[0], stored)


def test_the_first_block_is_not_run_again_once_its_form_is_known() -> None:
    model = tiny("gpt2")
    (window,) = windows([inputs("gpt2", batch=1)])
    names = tuple(block.name for block in layout(model).stacks[0])
    count = []
    model.get_submodule(names[0]).register_forward_pre_hook(lambda *_: count.append(1))
    first = capture(model, window, names, [], Interned())
    capture(model, window, names, [], Interned(), first.form)
    assert len(count) == 1


def test_equal_tensors_are_kept_once() -> None:
    interned = Interned()
    one, other = interned({"mask": torch.ones(3)}), interned({"mask": torch.ones(3)})
    assert one["mask"] is other["mask"]
    assert interned(torch.zeros(3)) is not one["mask"]


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x)


def test_a_model_that_skips_blocks_is_told() -> None:
    names = [f"blocks.{i}" for i in range(3)]
    with pytest.raises(FewbitError, match=r"called 1 of the 3 blocks from blocks\.0 on"):
        capture(Skips(), {"x": torch.ones(1, 4)}, names, [], Interned())


def test_the_model_is_as_before() -> None:
    model = tiny("llama")
    before = [type(module) for module in model.modules()]
    (window,) = windows([inputs("llama", batch=1)])
    capture(model, window, [block.name for block in layout(model).stacks[0]], [], Interned())
    assert [type(module) for module in model.modules()] == before
    assert model.config.use_cache is True


def test_a_failing_model_is_told() -> None:
    with pytest.raises(FewbitError, match="the model failed on a calibration window"):
        run(tiny("llama"), {"input_ids": torch.full((1, 4), 10**6)})
