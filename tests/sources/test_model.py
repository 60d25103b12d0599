"""SOURCE to model: each kind loads, each mistake is told in one sentence that names it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.sources import load_model

FACTORIES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)
    def forward(self, x):
        return self.drop(self.fc(x))
    @classmethod
    def tiny(cls):
        return cls()

def build():
    return Net()

ready = Net().train()
number = 7

def returns_list():
    return [1]

def raises():
    raise RuntimeError("weights are gone\\nsecond line")

def needs_argument(width):
    return nn.Linear(width, 2)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of factories in the working directory, which is not on sys.path."""
    (tmp_path / "factories_under_test.py").write_text(FACTORIES, encoding="utf-8")
    (tmp_path / "broken_under_test.py").write_text("import absent_package_under_test\n", encoding="utf-8")
    (tmp_path / "crashing_under_test.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield "factories_under_test"
    for name in ("factories_under_test", "broken_under_test", "crashing_under_test"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("attribute", ["build", "Net", "Net.tiny", "ready"])
def test_factories_from_the_working_directory(module: str, attribute: str) -> None:
    before = list(sys.path)
    loaded = load_model(f"{module}:{attribute}")
    assert isinstance(loaded.model, nn.Module)
    assert not loaded.model.training
    assert not any(m.training for m in loaded.model.modules())
    assert (loaded.kind, loaded.factory, loaded.name) == ("factory", f"{module}:{attribute}", attribute)
    assert loaded.tokenizer_dir is None
    assert loaded.model(torch.zeros(2, 4)).shape == (2, 3)
    assert sys.path == before


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("absent_under_test:build", "no module 'absent_under_test'"),
        ("torch.absent_under_test:build", "no module 'torch.absent_under_test'"),
        ("factories_under_test:biuld", "no attribute 'biuld'; did you mean 'build'?"),
        ("factories_under_test:Net.absent", "no attribute 'Net.absent'"),
        ("factories_under_test:number", "is of type int, no torch.nn.Module and no function"),
        ("factories_under_test:returns_list", "returned a list"),
        ("factories_under_test:raises", "raised RuntimeError: weights are gone"),
        ("factories_under_test:needs_argument", "raised TypeError"),
        (
            "broken_under_test:build",
            "raised ModuleNotFoundError: No module named 'absent_package_under_test'",
        ),
        ("crashing_under_test:build", "raised ZeroDivisionError"),
    ],
)
def test_a_wrong_factory_is_told(module: str, source: str, told: str) -> None:
    with pytest.raises(FewbitError) as caught:
        load_model(source)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("net.onnx", "ONNX models cannot be read; this version reads a Hugging Face folder"),
        ("net.gguf", "GGUF models cannot be read"),
        ("net.safetensors", "name the folder, with the config.json"),
        ("net.pth", "pickled weights"),
        ("net.weird", "no known kind"),
    ],
)
def test_a_file_that_is_no_source_is_told(tmp_path: Path, file: str, told: str) -> None:
    (tmp_path / file).write_bytes(b"x")
    with pytest.raises(FewbitError, match=told) as caught:
        load_model(tmp_path / file)
    assert file in str(caught.value)


@pytest.mark.parametrize("source", ["no/such/folder", "nosuchthing", "a:b:c", "module:", "1module:f"])
def test_what_does_not_exist_is_told_what_a_source_is(source: str) -> None:
    with pytest.raises(FewbitError, match="does not exist; a SOURCE is a Hugging Face folder"):
        load_model(source)


def test_a_folder_saved_by_fewbit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = fewbit.quantize(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), "W8A8-dynamic")
    fewbit.save(quantized, tmp_path / "saved")
    loaded = load_model(str(tmp_path / "saved"))
    assert (loaded.kind, loaded.name, loaded.factory, loaded.tokenizer_dir) == ("fewbit", "saved", None, None)
    assert not loaded.model.training
    x = torch.randn(3, 8)
    assert torch.equal(loaded.model(x), quantized(x))
    (tmp_path / "saved" / "fewbit.json").write_text("{")
    with pytest.raises(FewbitError, match=r"fewbit\.json"):
        load_model(tmp_path / "saved")


def test_a_folder_of_neither_kind_is_told(tmp_path: Path) -> None:
    with pytest.raises(FewbitError, match=r"no config\.json"):
        load_model(tmp_path)


@pytest.fixture
def tiny_bert(tmp_path: Path) -> tuple[Path, nn.Module]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert", model


def test_a_hugging_face_folder(tiny_bert: tuple[Path, nn.Module]) -> None:
    folder, reference = tiny_bert
    loaded = load_model(str(folder))
    assert (loaded.kind, loaded.name, loaded.factory, loaded.notes) == ("huggingface", "bert", None, ())
    assert type(loaded.model).__name__ == "BertForSequenceClassification"
    assert not loaded.model.training
    ids = torch.arange(10).view(2, 5)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, reference(ids).logits)
    assert loaded.tokenizer_dir is None
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert load_model(str(folder)).tokenizer_dir == folder


def test_half_precision_checkpoints_load_as_float32_exactly(tiny_bert: tuple[Path, nn.Module]) -> None:
    folder, reference = tiny_bert
    reference.to(torch.bfloat16).save_pretrained(folder)  # type: ignore[operator]
    weights = dict(load_model(str(folder)).model.named_parameters())
    for name, value in reference.named_parameters():
        assert weights[name].dtype == torch.float32
        assert torch.equal(weights[name], value.float())


def test_an_unknown_architecture_falls_back_to_the_base_model(tiny_bert: tuple[Path, nn.Module]) -> None:
    folder, _ = tiny_bert
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [
        "NoSuchModel",
        "logging",
    ]  # the second is something transformers has, and no model
    (folder / "config.json").write_text(json.dumps(config))
    assert type(load_model(str(folder)).model).__name__ == "BertModel"


def test_weights_the_checkpoint_lacks_are_noted(tiny_bert: tuple[Path, nn.Module]) -> None:
    from safetensors.torch import load_file, save_file

    folder, _ = tiny_bert
    tensors = load_file(folder / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (note,) = load_model(str(folder)).notes
    assert "classifier.weight" in note
    assert "random" in note


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("truncate weights", "cannot be loaded"),
        ("no weights", r"no \.safetensors weights"),
        ("only pickled", r"pickled ones \(\.bin\) are not read"),
        ("config is no json", "no readable JSON"),
        ("config is a list", "no JSON object"),
        ("unknown model type", "cannot be loaded"),
    ],
)
def test_damaged_hugging_face_folders(tiny_bert: tuple[Path, nn.Module], damage: str, told: str) -> None:
    folder, _ = tiny_bert
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "truncate weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "only pickled":
        weights.rename(folder / "pytorch_model.bin")
    else:
        texts = {
            "config is no json": "{",
            "config is a list": "[]",
            "unknown model type": '{"model_type": "nope"}',
        }
        config.write_text(texts[damage])
    with pytest.raises(FewbitError, match=told) as caught:
        load_model(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_in_a_folder_is_never_run(tiny_bert: tuple[Path, nn.Module], tmp_path: Path) -> None:
    folder, _ = tiny_bert
    mark = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "modeling_evil.Evil", "AutoModel": "modeling_evil.Evil"},
    }
    config["architectures"] = ["Evil"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FewbitError):
        load_model(str(folder))
    assert not mark.exists()
