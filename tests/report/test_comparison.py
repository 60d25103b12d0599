"""`fewbit.compare` on models of every kind of output."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fewbit
from fewbit.errors import FewbitError
from fewbit.evaluate.error import cosine, sqnr
from fewbit.evaluate.size import model_bytes
from fewbit.formats import save
from fewbit.pipeline import quantize
from fewbit.recipe import Recipe, Rule
from fewbit.report.comparison import compare


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    norm.running_var.uniform_(0.3, 3.0)
    return model


def pictures(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(count)]


def outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def test_the_whole_model_and_its_layers() -> None:
    model, data = classifier(), pictures()
    quantized = quantize(model, "W8A8", data, calibrator="minmax")
    result = compare(model, quantized, data, repeats=3)
    before, after = outputs(model, data), outputs(quantized, data)
    assert result.output_sqnr == pytest.approx(sqnr(before, after), abs=1e-3)
    assert result.cosine == pytest.approx(cosine(before, after), abs=1e-6)
    assert result.top1 == float((before.argmax(1) == after.argmax(1)).double().mean())
    assert (result.batches, result.samples) == (3, 12)
    assert [row.name for row in result.rows] == ["0", "4"]
    assert result.rows[0].weight_sqnr > 35, "the weights are measured against the folded ones"
    assert result.size.before == model_bytes(model)
    assert result.size.after == model_bytes(quantized)
    assert result.time is not None
    assert result.time.before.repeats == 3
    assert 0 < result.time.before.minimum <= result.time.before.median


def test_it_is_the_public_compare() -> None:
    assert fewbit.compare is compare


def test_models_and_their_modes_are_left_as_they_were() -> None:
    model, data = classifier(), pictures()
    quantized = quantize(model, "W8A8", data, calibrator="minmax")
    model.train()
    model[4].eval()
    before = copy.deepcopy(model.state_dict())
    compare(model, quantized, data, repeats=1)
    assert model.training
    assert not model[4].training
    assert not quantized.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(module._forward_hooks for module in (*model.modules(), *quantized.modules()))


def test_batches_are_gone_through_once() -> None:
    model, data = classifier(), pictures()
    quantized = quantize(model, "W8A16", data)
    taken = []

    def stream() -> Iterator[Tensor]:
        for index, batch in enumerate(data):
            taken.append(index)
            yield batch

    streamed = compare(model, quantized, stream(), repeats=0)
    assert taken == [0, 1, 2]
    assert streamed.time is None
    assert streamed.output_sqnr == compare(model, quantized, data, repeats=0).output_sqnr


def test_a_model_that_cannot_be_traced_is_folded_on_the_first_batch() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = classifier()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x if bool(x.sum() > -1e9) else -x)

    model, data = Odd().eval(), pictures()
    quantized = quantize(model, "W8A8", data, calibrator="minmax")
    result = compare(model, quantized, data, repeats=0)
    assert min(row.weight_sqnr for row in result.rows) > 35


def test_the_same_weights_cost_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    quantized = quantize(model, "W8A16")
    packed = quantized[0].weight.weight_qtensor().dequantize()  # type: ignore[index,union-attr,operator]
    with torch.no_grad():
        model[0].weight.copy_(packed)
    result = compare(model, quantized, [torch.randn(3, 4)], repeats=0)
    assert result.rows[0].weight_sqnr == math.inf
    assert result.output_sqnr > 120


@dataclass
class Pair:
    scores: Tensor
    hidden: tuple[Tensor, ...]


class Container(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> object:
        y = self.linear(x)
        forms = {
            "dict": {"logits": y, "ids": torch.tensor([1])},
            "tuple": (y, y + 1),
            "dataclass": Pair(y, (y,)),
            "tensor": y,
            "deep": y.reshape(-1, 1, 5),
        }
        return forms[self.form]


@pytest.mark.parametrize(
    ("form", "names", "classes"),
    [
        ("dict", ["logits"], True),
        ("tuple", ["0", "1"], False),
        ("dataclass", ["scores", "hidden.0"], False),
        ("tensor", ["output"], True),
        ("deep", ["output"], False),
    ],
)
def test_outputs_of_every_form(form: str, names: list[str], classes: bool) -> None:
    torch.manual_seed(0)
    model = Container(form)
    result = compare(model, quantize(model, "W4A16"), [torch.randn(7, 6)], repeats=0)
    assert [output.name for output in result.outputs] == names
    assert (result.top1 is not None) == classes
    assert 0.9 < result.cosine < 1
    assert 5 < result.output_sqnr < 40


def test_dictionaries_tuples_and_labels_reach_the_model() -> None:
    model = Container("tensor")
    quantized = quantize(model, "W8A16")
    x = torch.randn(7, 6)
    by_name = compare(model, quantized, [{"x": x}], repeats=1)
    labelled = compare(model, quantized, [(x, torch.zeros(7, dtype=torch.int64))], repeats=1)
    assert by_name.output_sqnr == labelled.output_sqnr == compare(model, quantized, [x], repeats=0).output_sqnr


def test_a_text_encoder() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertModel(config).eval()
    ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    result = compare(model, quantize(model, "W8A8-dynamic", [batch]), [batch], repeats=1)
    assert [output.name for output in result.outputs] == ["last_hidden_state", "pooler_output"]
    assert result.top1 is None
    assert 0.99 < result.cosine <= 1
    assert {row.kind for row in result.rows} == {"Linear", "Embedding"}
    by_name = {row.name: row for row in result.rows}
    assert by_name["embeddings.word_embeddings"].output_sqnr is not None
    assert by_name["pooler.dense"].input_spec == "int8/token/sym dynamic"
    assert by_name["pooler.dense"].input is None
    assert "embeddings.word_embeddings" in str(result)


def test_language_model_scores_count_every_token() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(0, 40, (2, 8), generator=torch.Generator().manual_seed(0))
    result = compare(model, quantize(model, "W8A16"), [{"input_ids": ids}], repeats=0)
    assert result.outputs[0].name == "logits"
    assert result.top1 is not None
    assert round(result.top1 * 16, 6) == round(result.top1 * 16)
    assert any(row.kind == "Conv1D" for row in result.rows)


def test_files_are_weighed(tmp_path: Path) -> None:
    model, data = classifier(), pictures()
    quantized = quantize(model, "W8A8", data, calibrator="minmax")
    save(quantized, tmp_path / "out")
    result = compare(model, quantized, data, repeats=0, files=(None, tmp_path / "out"))
    assert result.size.file_before is None
    assert result.size.file_after == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_notes_tell_what_stayed_float() -> None:
    model, data = classifier(), pictures()
    recipe = Recipe("W8A8", rules=(Rule("4", skip=True),))
    result = compare(model, quantize(model, recipe, data, calibrator="minmax"), data, repeats=0)
    assert [row.name for row in result.rows] == ["0"]
    assert any(note.startswith("4 stayed float: skipped by rule") for note in result.notes)


def test_progress_is_told() -> None:
    model, data = classifier(), pictures()
    told: list[tuple[str, int, int]] = []
    compare(model, quantize(model, "W8A16"), data, repeats=1, progress=lambda *step: told.append(step))
    assert told == [("compare", 1, 3), ("compare", 2, 3), ("compare", 3, 3), ("time", 0, 0), ("time", 1, 1)]


def test_no_batches() -> None:
    model = classifier()
    with pytest.raises(FewbitError, match="no batches"):
        compare(model, quantize(model, "W8A16"), [])


def test_a_batch_that_does_not_fit_is_named() -> None:
    model = classifier()
    with pytest.raises(FewbitError, match="failed on batch 2"):
        compare(model, quantize(model, "W8A16"), [*pictures(1), torch.randn(1, 5, 8, 8)])


def test_models_that_do_not_belong_together() -> None:
    model, data = classifier(), pictures()
    quantized = quantize(model, "W8A8", data, calibrator="minmax")
    with pytest.raises(FewbitError, match="not in the original"):
        compare(nn.Sequential(nn.Flatten()), quantized, data)


def test_broken_outputs_are_told() -> None:
    model, data = classifier(), pictures()
    quantized = quantize(model, "W8A8", data, calibrator="minmax")
    quantized[4].bias.fill_(math.nan)  # type: ignore[index,union-attr,operator]
    with pytest.raises(FewbitError, match="NaN"):
        compare(model, quantized, data)
