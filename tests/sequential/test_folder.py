"""From folder to folder: what is written loads and computes, killed runs go on, changed ones are refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, inputs, output, tiny, tiny_folder

import fewbit
from fewbit.errors import DiskFull, FewbitError
from fewbit.evaluate.size import model_bytes
from fewbit.nn import quantized_layers
from fewbit.recipe import Recipe, Rule, as_recipe
from fewbit.sequential.folder import FolderJob, quantize_folder
from fewbit.sequential.lock import RunLock
from fewbit.sequential.solve import Settings
from fewbit.sequential.windows import Window, windows


def job(source: Path, output: Path, scheme: str | Recipe = "W8A16", **changes: Any) -> FolderJob:
    return FolderJob(source, output, Settings(as_recipe(scheme)), **changes)


def data(family: str, rows: int = 2) -> list[Window]:
    return windows([inputs(family, batch=rows)], tiny(family).main_input_name)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_without_data_every_family_comes_out_as_in_memory(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    result = quantize_folder(job(tmp_path / "model", tmp_path / "out"))
    loaded, expected = fewbit.load(tmp_path / "out"), fewbit.quantize(model, "W8A16")
    assert quantized_layers(loaded).keys() == quantized_layers(expected).keys()
    mine, theirs = loaded.state_dict(), expected.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert torch.equal(output(loaded, family), output(expected, family))
    assert result.info.recipe == {"scheme": "W8A16"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "qwen2_moe", "whisper", "bert", "opt"])
def test_static_activations_are_calibrated_block_by_block(tmp_path: Path, family: str) -> None:
    model = tiny(family)
    model.save_pretrained(tmp_path / "model")
    result = quantize_folder(job(tmp_path / "model", tmp_path / "out", "W8A8", windows=data(family)))
    loaded = fewbit.load(tmp_path / "out")
    assert far(output(loaded, family), output(model, family)) < 0.15
    assert all(
        layer.weight.input_quantizer is not None
        for name, layer in quantized_layers(loaded).items()
        if "embed" not in name and "wte" not in name and "wpe" not in name
    )
    starved = [note for note in result.info.notes if "saw no calibration data" in note]
    assert bool(starved) == (family == "qwen2_moe")


def test_streaming_equals_memory_with_data(tmp_path: Path) -> None:
    model = tiny("llama")
    model.save_pretrained(tmp_path / "model")
    from fewbit.nn import kinds
    from fewbit.nn.plan import join_tied
    from fewbit.sequential.memory import quantize_blocks

    recipe = as_recipe("W8A8")
    plans, _ = join_tied(model, recipe.plan((name, kind) for name, _, kind in kinds.quantizable(model)))
    quantize_blocks(model, plans, [inputs("llama", batch=5)], Settings(recipe))
    quantize_folder(job(tmp_path / "model", tmp_path / "out", "W8A8", windows=data("llama", 5)))
    mine, theirs = fewbit.load(tmp_path / "out").state_dict(), model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_stays_float_keeps_the_checkpoints_type(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny("llama").to(dtype)
    model.save_pretrained(tmp_path / "model")
    recipe = Recipe("W8A16", rules=(Rule("lm_head", skip=True),))
    result = quantize_folder(job(tmp_path / "model", tmp_path / "out", recipe))
    loaded = fewbit.load(tmp_path / "out")
    assert loaded.lm_head.weight.dtype == loaded.model.norm.weight.dtype == dtype
    assert output(loaded, "llama").dtype == dtype
    assert far(output(loaded, "llama"), output(model, "llama")) < 0.1
    assert "lm_head" in result.info.skipped
    quantize_folder(job(tmp_path / "model", tmp_path / "wide", recipe, dtype="float32"))
    assert fewbit.load(tmp_path / "wide").model.norm.weight.dtype == torch.float32


def test_the_loaded_model_generates(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "gemma3_text")
    quantize_folder(job(source, tmp_path / "out", "W4A16-g16"))
    names = set(content(tmp_path / "out"))
    assert {"fewbit.json", "config.json", "tokenizer.json", "generation_config.json"} <= names
    assert "model.safetensors" not in names
    made = fewbit.load(tmp_path / "out").generate(torch.tensor([[1, 5, 6]]), max_new_tokens=4, do_sample=False)
    assert made.shape == (1, 7)


class Killed(BaseException):
    """The process is gone."""


def killed_at(monkeypatch: pytest.MonkeyPatch, number: int, run: Callable[[], object]) -> bool:
    """Run until the rename of that number; whether it came to that."""
    real, count = os.replace, 0

    def replace(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        try:
            run()
        except Killed:
            return True
    return False


@pytest.mark.parametrize("scheme", ["W8A8", "W4A16-g16"])
def test_a_run_killed_anywhere_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    data_of = data("llama", 1) if scheme == "W8A8" else None
    quantize_folder(job(source, tmp_path / "whole", scheme, windows=data_of))
    whole = content(tmp_path / "whole")
    number = 1
    while True:
        out = tmp_path / f"out{number}"
        run = job(source, out, scheme, windows=data_of)
        if not killed_at(monkeypatch, number, lambda run=run: quantize_folder(run)):
            break
        assert not out.exists()
        killed_at(monkeypatch, 2, lambda run=run: quantize_folder(run))  # and once more, soon after
        if not out.exists():
            quantize_folder(run)
        assert content(out) == whole
        assert not out.with_name(f"{out.name}.partial").exists()
        number += 1
    assert number > 4


def test_a_run_killed_while_it_cleans_up_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    run = job(source, tmp_path / "out")

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", die)
        with pytest.raises(Killed):
            quantize_folder(run)
    whole = content(tmp_path / "out")
    with pytest.raises(FewbitError, match="other arguments"):
        quantize_folder(job(source, tmp_path / "out", "W4A16-g16"))
    assert content(tmp_path / "out") == whole
    quantize_folder(run)
    assert content(tmp_path / "out") == whole
    assert not (tmp_path / "out.partial").exists()


def test_a_finished_part_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    run = job(source, tmp_path / "out", "W8A8", windows=data("llama"))
    steps: list[int] = []
    whole = quantize_folder(
        job(source, tmp_path / "whole", "W8A8", windows=data("llama")), lambda _s, d, _t: steps.append(d)
    )
    assert whole.output == tmp_path / "whole"
    from fewbit.sequential.streamed import Streamed

    done: list[str] = []
    write = Streamed.write

    def second_fails(self: Streamed, part: str, notes: Any) -> None:
        if done:
            raise Killed
        write(self, part, notes)
        done.append(part)

    with monkeypatch.context() as patched:
        patched.setattr(Streamed, "write", second_fails)
        with pytest.raises(Killed):
            quantize_folder(run)
    loads: list[str] = []
    fill = Streamed.load
    monkeypatch.setattr(
        Streamed, "load", lambda self, name, compute: (loads.append(name), fill(self, name, compute))[1]
    )
    quantize_folder(run)
    assert loads == ["model.layers.0", "model.layers.1"]  # the first only to see how blocks are called
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    source = tiny_folder(tmp_path / "model", "llama")
    assert killed_at(monkeypatch, 3, lambda: quantize_folder(job(source, tmp_path / "out", "W4A16-g16")))
    assert (tmp_path / "out.partial" / "run.json").is_file()
    return source, tmp_path / "out"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, o: job(s, o, "W3A16-g16"), "recipe scheme was W4A16-g16 and is W3A16-g16"),
        (lambda s, o: job(s, o, "W4A16-g16", dtype="float16"), "dtype was not there and is float16"),
        (lambda s, o: job(s, o, "W4A16-g16", windows=data("llama")), "data was not there and is 2 windows"),
    ],
)
def test_changed_arguments_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], FolderJob], said: str
) -> None:
    source, out = interrupted(tmp_path, monkeypatch)
    with pytest.raises(FewbitError, match=said):
        quantize_folder(change(source, out))


def test_a_changed_source_is_refused_and_a_restart_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = interrupted(tmp_path, monkeypatch)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(FewbitError, match=r"file model\.safetensors changed .*written again.*--restart"):
        quantize_folder(job(source, out, "W4A16-g16"))
    quantize_folder(job(source, out, "W4A16-g16", restart=True))
    assert len(quantized_layers(fewbit.load(out))) == 16


def test_states_and_sums_may_go_to_disk(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    for name, memory in (("wide", 2**30), ("narrow", 100)):
        quantize_folder(job(source, tmp_path / name, "W8A8", windows=data("llama", 4), memory=memory))
    assert content(tmp_path / "wide") == content(tmp_path / "narrow")


def test_an_output_is_replaced_only_when_asked(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    quantize_folder(job(source, tmp_path / "out"))
    with pytest.raises(FewbitError, match="holds a saved model already"):
        quantize_folder(job(source, tmp_path / "out", "W4A16-g16"))
    quantize_folder(job(source, tmp_path / "out", "W4A16-g16", overwrite=True))
    assert fewbit.load(tmp_path / "out").lm_head.weight.packed.spec.bits == 4
    with pytest.raises(FewbitError, match="which fewbit did not write"):
        quantize_folder(job(source, source, overwrite=True))


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    path = source / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(FewbitError, match=f"lacks the tensor {name}"):
        quantize_folder(job(source, tmp_path / "out"))
    save_file({**tensors, name: tensors[name][:5].contiguous()}, path)
    with pytest.raises(FewbitError, match=rf"{name} has the shape \(5, 32\)"):
        quantize_folder(job(source, tmp_path / "out", restart=True))
    save_file({**tensors, name: tensors[name] * torch.nan}, path)
    with pytest.raises(FewbitError, match=rf"{name} in .*model\.safetensors holds NaN"):
        quantize_folder(job(source, tmp_path / "out", restart=True))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FewbitError, match=r"model\.safetensors is damaged"):
        quantize_folder(job(source, tmp_path / "out", restart=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.1.input_layernorm.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama", "model.norm.weight"),
        ("llama", "model.embed_tokens.weight"),
        ("opt", "model.decoder.layers.1.fc1.bias"),
        ("mixtral", "model.layers.1.block_sparse_moe.experts.2.w2.weight"),
    ],
)
@pytest.mark.parametrize("with_data", [False, True])
def test_what_is_not_finite_is_named_with_its_file(tmp_path: Path, family: str, name: str, with_data: bool) -> None:
    tiny(family).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    for path in (tmp_path / "model").glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            tensors[name].view(-1)[-1] = float("-inf")
            save_file(tensors, path, {"format": "pt"})
            break
    recipe = Recipe("W8A16", rules=(Rule("*embed*", skip=True),))
    run = job(tmp_path / "model", tmp_path / "out", recipe, windows=data(family) if with_data else None)
    run = replace(run, settings=replace(run.settings, algorithm="gptq")) if with_data else run
    with pytest.raises(FewbitError) as caught:
        quantize_folder(run)
    assert f"the tensor {name} in {path} holds infinity" in str(caught.value)


def test_tensors_that_belong_to_nothing_are_told(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    tensors = load_file(source / "model.safetensors")
    save_file({**tensors, "vision.extra": torch.ones(2)}, source / "model.safetensors")
    result = quantize_folder(job(source, tmp_path / "out"))
    assert any("vision.extra belongs to no part" in note for note in result.info.notes)


def test_algorithms_that_need_data_say_so(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    with pytest.raises(FewbitError, match="needs calibration data"):
        quantize_folder(job(source, tmp_path / "out", "W8A8"))


def test_a_damaged_part_of_an_interrupted_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = interrupted(tmp_path, monkeypatch)
    part = next((tmp_path / "out.partial" / "files").glob("weights-*"))
    whole = part.read_bytes()
    for damaged in (b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        part.write_bytes(damaged)
        with pytest.raises(FewbitError, match=r"weights-.* is missing or damaged"):
            quantize_folder(job(source, out, "W4A16-g16"))
    shutil.rmtree(tmp_path / "out.partial")
    quantize_folder(job(source, out, "W4A16-g16"))


def test_the_report_of_a_resumed_run_is_that_of_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_folder(tmp_path / "model", "mixtral")
    run = job(source, tmp_path / "out", "W4A16-g16", dtype="bfloat16")
    whole = quantize_folder(job(source, tmp_path / "whole", "W4A16-g16", dtype="bfloat16"))
    killed_at(monkeypatch, 2, lambda: quantize_folder(run))
    assert model_bytes(quantize_folder(run).original) == model_bytes(whole.original)


def test_an_output_that_another_run_writes_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = interrupted(tmp_path, monkeypatch)
    lock = RunLock(tmp_path / "out.partial", out)
    lock.take()
    before = sorted(path.name for path in (tmp_path / "out.partial").rglob("*"))
    for restart in (False, True):
        with pytest.raises(FewbitError, match="another run writes to"):
            quantize_folder(job(source, out, "W4A16-g16", restart=restart))
    assert sorted(path.name for path in (tmp_path / "out.partial").rglob("*")) == before
    lock.release()
    quantize_folder(job(source, out, "W4A16-g16"))
    assert not (tmp_path / "out.partial").exists()


def test_groups_wider_than_a_row_are_stored_as_a_row(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    for scheme in ("W4A16-g100000", "W4A16-g64"):
        quantize_folder(job(source, tmp_path / scheme, scheme))
    wide, fitting = (fewbit.load(tmp_path / scheme) for scheme in ("W4A16-g100000", "W4A16-g64"))
    assert model_bytes(wide) <= model_bytes(fitting)


def test_after_a_full_disk_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    run = job(source, tmp_path / "out", "W4A16-g16")
    quantize_folder(replace(run, output=tmp_path / "whole"))
    for where in ("fewbit.sequential.streamed._tensors.write", "fewbit.sequential.streamed.Journal.add"):
        with monkeypatch.context() as full:

            def no_room(*_: object) -> None:
                raise OSError(28, "No space left on device")

            full.setattr(where, no_room)
            with pytest.raises(DiskFull, match=r"out\.partial.* No space left .*the same command goes on"):
                quantize_folder(run)
    quantize_folder(run)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
