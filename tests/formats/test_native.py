"""A saved model comes back bit for bit; a damaged, hostile or half-written one never comes back at all."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fewbit
from fewbit import formats
from fewbit.errors import FewbitError
from fewbit.formats import _manifest, _tensors, native
from fewbit.nn import info, quantized_layers
from formats import samples

RECIPES = ["W8A8", "W8A8-dynamic", "W4A16-g8"]
FILES = [_manifest.NAME, _tensors.NAME]


def save(model: nn.Module, path: Path, **options: Any) -> Path:
    """Save without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fewbit.save(model, path, **options)


def refused(folder: Path, model: Any = None) -> str:
    """The one sentence with which loading is refused."""
    with pytest.raises(FewbitError) as caught:
        fewbit.load(folder, model)
    message = str(caught.value)
    assert str(folder) in message
    assert message
    assert "\n" not in message
    return message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny saved model of 4-bit weights."""
    return save(samples.quantized(lambda: nn.Linear(4, 3), (2, 4), "W4A16-g4"), tmp_path / "out")


# --- the round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [*RECIPES, None])
@pytest.mark.parametrize("name", samples.MODELS)
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, name: str, recipe: str | None) -> None:
    shape = samples.MODELS[name][1]
    model = samples.sample(name, recipe)
    before = copy.deepcopy(model.state_dict())
    assert save(model, tmp_path / "out", source="a test") == tmp_path / "out"
    samples.assert_same(dict(model.state_dict()), dict(before))
    loaded = fewbit.load(str(tmp_path / "out"))
    x = samples.example(shape)
    with torch.no_grad():
        samples.assert_same(loaded(x), model(x))
    samples.assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    assert list(quantized_layers(loaded)) == list(quantized_layers(model))
    assert info(loaded) == info(model)
    assert not any(module.training for module in loaded.modules())
    with torch.no_grad():
        samples.assert_same(copy.deepcopy(loaded)(x), model(x))


def test_a_loaded_model_can_be_saved_again_to_the_same_bytes(tmp_path: Path) -> None:
    save(samples.sample("residual"), tmp_path / "one")
    for before, after in (("one", "two"), ("two", "three")):
        save(fewbit.load(tmp_path / before), tmp_path / after)
    one, two, three = (native.load(tmp_path / each) for each in ("one", "two", "three"))
    x = samples.example(samples.IMAGE)
    samples.assert_same(one(x), two(x))
    samples.assert_same(one(x), three(x))
    for file in FILES:
        assert (tmp_path / "two" / file).read_bytes() == (tmp_path / "three" / file).read_bytes()


@pytest.mark.parametrize("name", samples.MODELS)
def test_saving_is_deterministic(tmp_path: Path, name: str) -> None:
    """Of two copies; that quantizing twice gives the same model is for others to test."""
    for each in ("one", "two"):
        save(samples.sample(name), tmp_path / each)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_sequential_keeps_its_class_and_its_order(tmp_path: Path) -> None:
    model = samples.sample("sequential")
    loaded = fewbit.load(save(model, tmp_path / "out"))
    assert type(loaded) is nn.Sequential
    assert str(loaded) == str(model)
    assert loaded[0][1] is loaded[0][3]


@pytest.mark.parametrize("recipe", ["W8A16", None])
def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path, recipe: str | None) -> None:
    model = samples.sample("tied", recipe)
    loaded: Any = fewbit.load(save(model, tmp_path / "out"))
    if recipe is None:
        assert loaded.head.weight is loaded.embed.weight
    else:
        assert loaded.head.weight.packed is loaded.embed.weight.packed
    aliases = json.loads((tmp_path / "out" / _manifest.NAME).read_bytes())["aliases"]
    assert aliases
    sizes = [tensor.nbytes for tensor in model.state_dict().values()]
    shared = [model.state_dict()[name].nbytes for name in aliases]
    data = (tmp_path / "out" / _tensors.NAME).stat().st_size
    header = int.from_bytes((tmp_path / "out" / _tensors.NAME).read_bytes()[:8], "little")
    assert data == 8 + header + sum(sizes) - sum(shared)


def test_other_float_types_and_memory_orders_come_back(tmp_path: Path) -> None:
    half = samples.float_model(samples.sequential).to(torch.bfloat16)
    last = samples.float_model(samples.sequential).to(memory_format=torch.channels_last)
    for name, model in (("half", half), ("last", last)):
        loaded = fewbit.load(save(model, tmp_path / name))
        for ours, theirs in zip(model.state_dict().values(), loaded.state_dict().values()):
            assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        x = samples.example(samples.IMAGE).to(model[0][0].weight.dtype)
        samples.assert_same(loaded(x), model(x))


def test_a_model_in_training_mode_is_saved_as_evaluated_and_left_in_training(tmp_path: Path) -> None:
    model = samples.float_model(samples.ResidualNet).train()
    model.head.eval()
    loaded = fewbit.load(save(model, tmp_path / "out"))
    assert model.training
    assert model.stem[1].training
    assert not model.head.training
    x = samples.example(samples.IMAGE)
    samples.assert_same(loaded(x), model.eval()(x))


def test_saving_leaves_no_trace_on_the_model(tmp_path: Path) -> None:
    model = samples.float_model(samples.ResidualNet)
    before = set(vars(model)), list(model.state_dict()), [name for name, _ in model.named_buffers()]
    save(model, tmp_path / "out")
    assert before == (set(vars(model)), list(model.state_dict()), [name for name, _ in model.named_buffers()])


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    save(samples.sample("residual"), tmp_path / "out")
    before = torch.get_rng_state()
    fewbit.load(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_description_says_what_was_done(saved: Path) -> None:
    content = json.loads((saved / _manifest.NAME).read_bytes())
    assert content["format_version"] == 1
    assert content["quantization"]["recipe"] == {"scheme": "W4A16-g4"}
    assert content["weights"]["bytes"] == (saved / _tensors.NAME).stat().st_size
    assert content["architecture"]["modules"][""]["layer"]["weight"]["spec"] == "int4/g4/sym/f16"
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(("suffix", "dtype"), [("", torch.float32), ("/f16", torch.float16), ("/bf16", torch.bfloat16)])
def test_scales_are_stored_in_their_type_and_come_back(suffix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    recipe = fewbit.Recipe(
        "W4A16", weights=f"int4/g4/asym{suffix}"
    )  # without a suffix: as files of version 0.1 were written
    model = fewbit.quantize(nn.Linear(8, 3), recipe)
    path = save(model, tmp_path / "out")
    stored = load_file(path / _tensors.NAME)
    scales = [value for name, value in stored.items() if name.endswith("scale")]
    assert [value.dtype for value in scales] == [dtype]
    x = torch.randn(2, 8)
    assert torch.equal(fewbit.load(path)(x), model(x))


# --- architectures that cannot be saved -----------------------------------------------------------


def test_an_untraceable_model_needs_the_float_model_again(tmp_path: Path) -> None:
    model = samples.quantized(samples.Untraceable, samples.IMAGE)
    with pytest.warns(UserWarning, match=r"Untraceable could not be saved .*will need model="):
        fewbit.save(model, tmp_path / "out")
    message = refused(tmp_path / "out")
    assert "Untraceable" in message
    assert "pass model=<the float module or its factory>" in message
    x = samples.example(samples.IMAGE)
    fresh = samples.Untraceable()
    before = copy.deepcopy(fresh.state_dict())
    for given in (fresh, samples.Untraceable, samples.float_model(samples.Untraceable)):
        loaded = fewbit.load(tmp_path / "out", given)
        assert type(loaded) is samples.Untraceable
        with torch.no_grad():
            samples.assert_same(loaded(x), model(x))
        samples.assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
        assert info(loaded) == info(model)
    samples.assert_same(dict(fresh.state_dict()), dict(before))
    assert not quantized_layers(fresh)


@pytest.mark.parametrize("name", samples.MODELS)
def test_every_model_can_also_be_loaded_into_its_float_self(tmp_path: Path, name: str) -> None:
    factory, shape = samples.MODELS[name]
    model = samples.sample(name)
    loaded = fewbit.load(save(model, tmp_path / "out"), factory)
    assert type(loaded) is type(model)
    with torch.no_grad():
        samples.assert_same(loaded(samples.example(shape)), model(samples.example(shape)))


def test_a_float_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save(samples.sample("residual"), tmp_path / "out")
    assert "does not fit" in refused(tmp_path / "out", nn.Linear(2, 2))
    assert "does not fit" in refused(tmp_path / "out", samples.TiedModel)
    assert "returned a int" in refused(tmp_path / "out", lambda: 3)


# --- damage ---------------------------------------------------------------------------------------


def test_every_flipped_bit_is_refused(saved: Path) -> None:
    """All of the JSON's and all of the tensors'."""
    for file in FILES:
        data = (saved / file).read_bytes()
        with (saved / file).open("r+b", buffering=0) as handle:
            for position in range(8 * len(data)):
                place, bit = divmod(position, 8)
                os.pwrite(handle.fileno(), bytes([data[place] ^ 1 << bit]), place)
                with pytest.raises(FewbitError, match=r"fewbit\.json|model\.safetensors"):
                    native.load(saved)
                os.pwrite(handle.fileno(), data[place : place + 1], place)
    native.load(saved)


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_and_addition_is_refused(saved: Path, file: str) -> None:
    path = saved / file
    data = path.read_bytes()
    for damaged in [data[:length] for length in range(0, len(data), 3)] + [data[:-1], data + b"\0", data + data]:
        path.write_bytes(damaged)
        assert file in refused(saved)


def test_missing_and_foreign_things_are_refused(saved: Path, tmp_path: Path) -> None:
    assert "not a folder written by fewbit" in refused(tmp_path / "nowhere")
    assert "not a folder written by fewbit" in refused(saved / _manifest.NAME)
    (tmp_path / "empty").mkdir()
    assert f"holds no {_manifest.NAME}" in refused(tmp_path / "empty")
    (saved / _tensors.NAME).unlink()
    assert f"{_tensors.NAME} cannot be read" in refused(saved)
    (saved / _manifest.NAME).unlink()
    assert f"holds no {_manifest.NAME}" in refused(saved)


def test_a_newer_version_says_to_upgrade(saved: Path) -> None:
    samples.rewrite(saved, lambda content: content.update(format_version=3))
    assert "written by a newer fewbit" in refused(saved)


def test_swapped_tensors_are_refused(saved: Path, tmp_path: Path) -> None:
    other = save(samples.quantized(lambda: nn.Linear(4, 3), (2, 4), "W4A16-g2"), tmp_path / "other")
    shutil.copy(other / _tensors.NAME, saved / _tensors.NAME)
    assert "is damaged" in refused(saved)


# --- hostile content with the right digests -------------------------------------------------------


def deeper(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values in a JSON tree."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield from deeper(value, (*path, key))


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    tree = copy.copy(tree)
    tree[path[0]] = replaced(tree[path[0]], path[1:], value)
    return tree


def outcome(folder: Path) -> str | None:
    """Why loading is refused, None if it is not."""
    try:
        assert isinstance(native.load(folder), nn.Module)
    except FewbitError as error:
        return str(error)
    return None


STRANGE: list[Any] = [
    None, True, -1, 0, 10**30, 1.5, "", "a.b", "__class__", "../x", "\0", [], [[]], {}, {"a": 1}, {"node": 0},
    [None] * 3
]  # fmt: skip


@pytest.mark.parametrize("name", ["residual", "padded", "tied"])
def test_any_value_in_the_description_may_be_anything(tmp_path: Path, name: str) -> None:
    """Whatever stands there, loading gives a module or one sentence."""
    folder = save(samples.sample(name), tmp_path / "out")
    content = json.loads((folder / _manifest.NAME).read_bytes())
    content.pop("digest")
    paths = [path for path in deeper(content) if path and path[0] != "quantization"]
    chosen = random.Random(0)
    refusals = 0
    for _ in range(250):
        path = chosen.choice(paths)
        changed = replaced(content, path, chosen.choice(STRANGE))
        (folder / _manifest.NAME).write_bytes(_manifest.to_bytes(changed))
        message = outcome(folder)
        if message is not None:
            assert str(folder) in message
            assert "\n" not in message
            refusals += 1
    assert refusals > 150


@pytest.mark.parametrize("member", sorted(native._MEMBERS))
def test_no_member_may_be_missing_or_of_another_type(saved: Path, member: str) -> None:
    data = (saved / _manifest.NAME).read_bytes()
    samples.rewrite(saved, lambda content: content.pop(member) and None)
    refused(saved)
    for value in (5, "x", [1], True, 2.5, {"unexpected": 1}):
        (saved / _manifest.NAME).write_bytes(data)
        samples.rewrite(saved, lambda content, value=value: content.update({member: value}))
        if not (member in ("source", "fewbit_version") and value == "x"):
            refused(saved)


def test_an_unexpected_member_is_refused(saved: Path) -> None:
    samples.rewrite(saved, lambda content: content.update(extra=1))
    assert "unexpected member 'extra'" in refused(saved)


def test_the_tensors_file_is_always_the_one_beside(saved: Path, tmp_path: Path) -> None:
    """The description's word for it leads nowhere."""
    target = tmp_path / _tensors.NAME
    shutil.move(saved / _tensors.NAME, target)
    samples.rewrite(saved, lambda content: content["weights"].update(file="../" + _tensors.NAME))
    assert "names the file '../model.safetensors'" in refused(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bias"), "lacks the tensor bias"),
        (lambda t: t.update(more=torch.ones(1)), "unexpected tensor more"),
        (lambda t: t.update(bias=torch.ones(4)), "the tensor bias has the shape 4 instead of 3"),
        (lambda t: t.update(bias=torch.ones(3, dtype=torch.int32)), "the tensor bias is of type torch.int32"),
        (lambda t: t.update({"weight.packed.codes": torch.zeros(6)}), "weight.packed.codes is of type torch.float32"),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_refused(
    saved: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    samples.rewrite_tensors(saved, change)
    assert message in refused(saved)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("place", ["tensors", "description", "fsync", "rename"])
def test_a_save_that_is_stopped_leaves_nothing(
    tmp_path: Path, failure: BaseException, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise failure

    model = samples.sample("sequential")
    kept = save(samples.quantized(lambda: nn.Linear(4, 3), (2, 4)), tmp_path / "kept")
    before = {file: (kept / file).read_bytes() for file in FILES}
    target = {
        "tensors": (_tensors, "sha256"), "description": (_manifest, "to_bytes"), "fsync": (os, "fsync"),
        "rename": (os, "replace"),
    }[place]  # fmt: skip
    for path, overwrite in ((tmp_path / "new" / "er", False), (kept, True)):
        with monkeypatch.context() as patch:
            patch.setattr(*target, stop)
            with pytest.raises(FewbitError if isinstance(failure, OSError) else type(failure)):
                fewbit.save(model, path, overwrite=overwrite)
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    assert {file: (kept / file).read_bytes() for file in FILES} == before


def test_only_an_earlier_output_is_replaced_and_only_when_asked(saved: Path, tmp_path: Path) -> None:
    model = samples.sample("sequential")
    before = {file: (saved / file).read_bytes() for file in FILES}
    with pytest.raises(FewbitError, match="overwrite=True, --overwrite"):
        fewbit.save(model, saved)
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(FewbitError, match=r"holds notes.txt, which fewbit did not write"):
        fewbit.save(model, saved, overwrite=True)
    (saved / "notes.txt").unlink()
    assert {file: (saved / file).read_bytes() for file in FILES} == before
    fewbit.save(model, saved, overwrite=True)
    assert type(fewbit.load(saved)) is nn.Sequential

    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / _tensors.NAME).write_bytes(b"someone's weights")
    with pytest.raises(FewbitError, match="which fewbit did not write"):
        fewbit.save(model, tmp_path / "foreign", overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FewbitError, match="is a file"):
        fewbit.save(model, tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    model = samples.quantized(lambda: nn.Linear(4, 3), (2, 4))
    save(model, tmp_path / "out")
    x = torch.randn(2, 4)
    assert torch.equal(fewbit.load(tmp_path / "out")(x), model(x))


def test_a_damaged_output_can_be_overwritten(saved: Path) -> None:
    (saved / _manifest.NAME).write_text("garbage")
    save(samples.sample("sequential"), saved, overwrite=True)
    assert type(fewbit.load(saved)) is nn.Sequential


# --- formats by name ------------------------------------------------------------------------------


def test_formats_are_found_by_their_file_names() -> None:
    assert "native" in formats.names()
    assert formats.get("native") is native
    assert not any(name.startswith("_") or name == "architecture" for name in formats.names())


@pytest.mark.parametrize("name", ["nativ", "_manifest", "-manifest", "architecture", "native.load", "", "../native"])
def test_an_unknown_format_lists_those_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(FewbitError, match=r"choose one of .*native"):
        fewbit.save(nn.Linear(1, 1), tmp_path / "out", format=name)
    with pytest.raises(FewbitError, match=r"choose one of .*native"):
        fewbit.load(tmp_path / "out", format=name)
    assert not (tmp_path / "out").exists()
