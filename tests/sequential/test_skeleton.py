"""A model without weights from its config.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import tiny, tiny_folder

from fewbit.errors import FewbitError
from fewbit.sequential.skeleton import float_dtype, skeleton


def test_parameters_are_empty_and_tied_ones_tied(tmp_path: Path) -> None:
    tiny("gemma3_text").save_pretrained(tmp_path)
    model = skeleton(tmp_path)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"bits": 4}}, "is quantized already"),
        ({"model_type": "no_such_model", "architectures": ["NoSuchModel"]}, "does not describe a model"),
        ({"hidden_size": "wide"}, "does not describe a model"),
    ],
)
def test_configs_that_cannot_be_used(tmp_path: Path, change: dict[str, object], said: str) -> None:
    tiny("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(FewbitError, match=said):
        skeleton(tmp_path)


def test_the_type_of_what_stays_float(tmp_path: Path) -> None:
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert float_dtype(tmp_path, None) == torch.bfloat16
    assert float_dtype(tmp_path, "float32") == torch.float32
    with pytest.raises(FewbitError, match="--dtype takes float32, float16, bfloat16"):
        float_dtype(tmp_path, "int8")


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("gemma3_text", True)])
def test_weights_of_a_causal_model_say_so_where_the_config_does_not(tmp_path: Path, family: str, tied: bool) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path / "whole")
    model.model.save_pretrained(tmp_path / "base")
    for folder in ("whole", "base"):
        path = tmp_path / folder / "config.json"
        config = json.loads(path.read_text())
        del config["architectures"]
        path.write_text(json.dumps(config))
    found = skeleton(tmp_path / "whole")
    assert type(found) is type(model)
    assert (found.lm_head.weight is found.model.embed_tokens.weight) is tied
    assert type(skeleton(tmp_path / "base")) is type(model.model)


def test_all_that_transformers_says_is_told(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "hidden_size": "lots"}))
    with pytest.raises(FewbitError, match=r"does not describe a model: .*hidden_size.*lots"):
        skeleton(source)
