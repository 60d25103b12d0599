"""Every parameter of every family comes out of a saved folder as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import FAMILIES, tiny

from fewbit.errors import FewbitError
from fewbit.sequential import names
from fewbit.sequential.checkpoint import Checkpoint
from fewbit.sequential.names import origins
from fewbit.sequential.skeleton import skeleton


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_comes_back(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    empty, checkpoint = skeleton(tmp_path), Checkpoint(tmp_path)
    found, left = origins(empty, checkpoint.entries)
    assert not left
    expected = model.state_dict()
    made = {}
    for origin in {id(each): each for each in found.values()}.values():
        made |= origin.make(empty, checkpoint.read)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in made.items())
    state = empty.state_dict(keep_vars=True)
    there = {id(state[name]) for name in made}
    assert all(id(tensor) in there for tensor in state.values())


def test_a_headless_checkpoint_gets_its_prefix(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    keys = [name.removeprefix("model.") for name in model.state_dict()]
    found, left = origins(skeleton(tmp_path), [*keys, "vision.extra"])
    assert left == ["vision.extra"]
    assert found["model.norm.weight"].keys == [("norm.weight", "norm.weight")]


def test_without_transformers_tables_names_must_agree(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    found, left = names._by_prefix(skeleton(tmp_path), ["norm.weight", "lm_head.weight", "odd"])
    assert (sorted(found), left) == (["lm_head.weight", "model.norm.weight"], ["odd"])


def test_tensors_that_do_not_go_together_are_named(tmp_path: Path) -> None:
    tiny("mixtral").save_pretrained(tmp_path)
    empty, checkpoint = skeleton(tmp_path), Checkpoint(tmp_path)
    found, _ = origins(empty, checkpoint.entries)
    origin = next(each for each in found.values() if each.converter is not None)
    sizes = iter(range(1, 100))
    with pytest.raises(FewbitError, match="cannot be converted to"):
        origin.make(empty, lambda _: torch.ones(next(sizes), 3))
