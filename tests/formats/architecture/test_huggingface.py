"""Models of transformers: class and config, buffers, ties; and nothing that a file could make it fetch."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fewbit
from fewbit.errors import FewbitError, MissingExtraError
from fewbit.formats import _manifest, _tensors, architecture
from fewbit.formats.architecture import huggingface
from fewbit.formats.architecture.description import Description
from fewbit.formats.architecture.values import Undescribable
from formats import samples

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def bert() -> nn.Module:
    labels = {"id2label": {0: "no", 1: "yes", 2: "perhaps"}, "label2id": {"no": 0, "yes": 1, "perhaps": 2}}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, **labels))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=16, **ENDS)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**SMALL, **ENDS, num_key_value_heads=1, rope_parameters=ROPE)
    return transformers.LlamaForCausalLM(config)


def opt() -> nn.Module:
    """Its embedding of positions is a subclass of nn.Embedding with a forward of its own."""
    config = transformers.OPTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=32, vocab_size=30, word_embed_proj_dim=16,
        max_position_embeddings=16, **ENDS,
    )  # fmt: skip
    return transformers.OPTForCausalLM(config)


def resnet() -> nn.Module:
    """Batch norms, which are folded: identities and new biases in their stead."""
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {"bert": bert, "gpt2": gpt2, "llama": llama, "opt": opt, "resnet": resnet}
RECIPES = ["W8A8", "W4A16-g8", "W8A8-dynamic", None]


def batch(name: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if name == "resnet":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=generator)}
    return {"input_ids": torch.randint(3, 30, (2, 7), generator=generator)}


@functools.cache
def made(name: str, recipe: str | None) -> nn.Module:
    model = samples.float_model(MODELS[name])
    return model if recipe is None else fewbit.quantize(model, recipe, data=[batch(name, 1)])


def make(name: str, recipe: str | None = "W8A8") -> Any:
    return copy.deepcopy(made(name, recipe))


def outputs(model: nn.Module, name: str) -> list[torch.Tensor]:
    with torch.no_grad():
        return [each for each in model(**batch(name)).to_tuple() if isinstance(each, torch.Tensor)]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, name: str, recipe: str | None) -> None:
    model = make(name, recipe)
    fewbit.save(model, tmp_path / "out")
    before = torch.get_rng_state()
    loaded: Any = fewbit.load(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is type(model)
    samples.assert_same(outputs(loaded, name), outputs(model, name))
    samples.assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    samples.assert_same(dict(loaded.named_buffers()), dict(model.named_buffers()))
    assert str(loaded) == str(model)
    assert loaded.config.to_dict() == {**model.config.to_dict(), "transformers_version": transformers.__version__}
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


def test_the_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    for each in ("one", "two"):
        fewbit.save(make("llama"), tmp_path / each)
    for file in (_manifest.NAME, _tensors.NAME):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("recipe", ["W8A16", None])
def test_tied_embeddings_stay_tied_and_are_stored_once(tmp_path: Path, recipe: str | None) -> None:
    model = make("gpt2", recipe)
    loaded: Any = fewbit.load(fewbit.save(model, tmp_path / "out"))
    ours, theirs = loaded.lm_head.weight, loaded.transformer.wte.weight
    assert (ours is theirs) if recipe is None else (ours.packed is theirs.packed)
    assert any("lm_head" in alias for alias in json.loads((tmp_path / "out" / _manifest.NAME).read_bytes())["aliases"])


def test_generation_goes_on_as_before(tmp_path: Path) -> None:
    model = make("llama", "W8A8-dynamic")
    model.generation_config.max_new_tokens = 5
    model.generation_config.eos_token_id = [2, 3]
    loaded: Any = fewbit.load(fewbit.save(model, tmp_path / "out"))
    assert loaded.generation_config.eos_token_id == [2, 3]
    ids = batch("llama")["input_ids"]
    assert torch.equal(loaded.generate(ids, do_sample=False), model.generate(ids, do_sample=False))


def test_labels_and_attention_are_kept(tmp_path: Path) -> None:
    model = make("bert", None)
    model.set_attn_implementation("eager")
    loaded: Any = fewbit.load(fewbit.save(model, tmp_path / "out"))
    assert loaded.config._attn_implementation == "eager"
    assert loaded.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}


def test_buffers_that_the_config_does_not_give_are_saved(tmp_path: Path) -> None:
    model = make("llama")
    assert huggingface.describe(model).tensors == {}
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.mul_(1.5)
    assert list(huggingface.describe(model).tensors) == ["model.rotary_emb.inv_freq"]
    loaded: Any = fewbit.load(fewbit.save(model, tmp_path / "out"))
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)
    samples.assert_same(outputs(loaded, "llama"), outputs(model, "llama"))


def test_no_name_of_a_place_is_saved(tmp_path: Path) -> None:
    model = make("bert")
    model.config._name_or_path = "some/folder"
    fewbit.save(model, tmp_path / "out")
    assert "some/folder" not in (tmp_path / "out" / _manifest.NAME).read_text()


def test_weights_are_neither_drawn_nor_held_while_building() -> None:
    description = huggingface.describe(make("llama", None))
    built = huggingface.build(description)
    assert all(parameter.is_meta for parameter in built.parameters())
    assert not any(buffer.is_meta for buffer in built.buffers())
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_class_of_the_users_own_is_not_taken_for_one_of_transformers() -> None:
    class BertModel(transformers.BertModel):  # type: ignore[misc]
        pass

    model = BertModel(transformers.BertConfig(**SMALL))
    assert huggingface.is_model(model)
    with pytest.raises(Undescribable, match="does not ship"):
        huggingface.describe(model)
    description = architecture.describe(model)
    assert description.kind == "unknown"
    assert "does not ship" in str(description.details["reason"])


def test_a_part_that_the_config_does_not_give_is_told() -> None:
    model = make("bert", None)
    model.bert.pooler.activation = nn.Sequential(nn.Tanh(), nn.Tanh())
    with pytest.raises(Undescribable, match=r"pooler.activation of class Sequential"):
        huggingface.describe(model)


# --- hostile descriptions -------------------------------------------------------------------------


def changed(config: dict[str, Any] | None = None, **changes: Any) -> Description:
    content: Any = json.loads(json.dumps(huggingface.describe(make("llama", None)).to_json()))
    details = {key: changes.pop(key) for key in ("attention", "generation") if key in changes}
    content["details"].update(details)
    content["details"]["config"].update(config or {})
    content.update(changes)
    return Description.from_json(content)


_CLASSES = """
AutoModel AutoModelForCausalLM pipeline Trainer PreTrainedModel LlamaTokenizer LlamaConfig TimmBackbone
TimmWrapperModel AutoConfig utils models __class__ __getattr__ GenerationMixin torch os
LlamaForCausalLM.from_pretrained models.llama RagRetriever
"""
CLASSES = [*_CLASSES.split(), "", "Llama ForCausalLM", "LlamaForCausalLM\n", "x" * 300]


@pytest.mark.parametrize("name", CLASSES)
def test_only_models_that_transformers_ships_are_built(name: str) -> None:
    with pytest.raises(FewbitError, match="does not ship"):
        architecture.build(changed(**{"class": name}))


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "evil/repo--model.Evil"}}, {"trust_remote_code": True},
        {"quantization_config": {"x": 1}},
        {"dtype": "load"}, {"torch_dtype": "hub"}, {"_attn_implementation": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"attn_implementation": ""}, {"nested": [{"auto_map": {"a": "b"}}]}, {"text_config": {"dtype": "save"}},
        {"use_pretrained_backbone": True}, {"backbone": "evil/repo"}, {"model_type": "timm_wrapper"},
        {"_name_or_path": "evil/repo"},
        {"experts_implementation": "evil"}, {"hidden_size": "many"}, {"num_hidden_layers": None},
        {"hidden_act": "evil"},
        {"__class__": 3}, {"hidden_size": -4}, {"hidden_size": 10**30}, {"rope_parameters": []},
        {"num_attention_heads": 0},
    ],
    ids=str,
)  # fmt: skip
def test_configs_that_would_load_or_break_something_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(FewbitError):
        architecture.build(changed(config))


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "flash_attention_2"}, {"attention": "evil/kernel"}, {"attention": 3},
        {"generation": {"custom_generate": "evil"}},
        {"generation": {"__class__": 1}}, {"generation": 3}, {"details": {}},
        {"details": {"config": {}, "attention": None, "generation": None, "code": "x"}},
        {"modules": {"": {"container": "Module"}, "model": {"same": "lm_head"}, "lm_head": {"same": "nowhere"}}},
        {"tensors": {"nowhere.x": ["parameter", "float32", [1]]}}, {"tensors": {"forward": ["buffer", "float32", [1]]}},
        {"ties": {"model": "lm_head"}}, {"ties": {"lm_head": "lm_head"}}, {"ties": {"__class__": "model"}},
    ],
    ids=str,
)  # fmt: skip
def test_details_of_another_form_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FewbitError):
        architecture.build(changed(**changes))


def test_the_hub_is_out_of_reach_while_a_model_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    seen = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    build = transformers.LlamaForCausalLM.__init__
    monkeypatch.setattr(
        transformers.LlamaForCausalLM,
        "__init__",
        lambda self, config: (seen.append(constants.HF_HUB_OFFLINE), build(self, config))[1],
    )
    huggingface.build(changed())
    assert seen[-1] is True
    assert constants.HF_HUB_OFFLINE is False


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewbit.save(make("bert"), tmp_path / "out")

    def absent(module: str, extra: str) -> Any:
        raise MissingExtraError(f"this needs the package {module}: pip install 'fewbit[{extra}]'")

    monkeypatch.setattr(huggingface, "require", absent)
    with pytest.raises(MissingExtraError, match=r"fewbit\[llm\]"):
        fewbit.load(tmp_path / "out")
