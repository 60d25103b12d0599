"""Options about data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fewbit.cli.options import DataOptions, numbers
from fewbit.errors import FewbitError
from fewbit.sources import LoadedModel


def options(path: Path | None, **changed: object) -> DataOptions:
    values: dict[str, object] = {
        "samples": None,
        "batch_size": None,
        "image_size": None,
        "mean": None,
        "std": None,
        "tokens": None,
        **changed,
    }
    return DataOptions(path, **values)  # type: ignore[arg-type]


def test_numbers_with_commas() -> None:
    assert numbers("0.485, 0.456,0.406", "--mean") == (0.485, 0.456, 0.406)
    assert numbers("0.5", "--mean") == (0.5,)
    assert numbers(None, "--mean") is None


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1;2", "nan", "inf,1,1"])
def test_what_is_no_list_of_numbers(text: str) -> None:
    with pytest.raises(FewbitError, match="--std takes numbers"):
        numbers(text, "--std")


def test_wrong_data_is_told_before_a_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(FewbitError, match="does not exist"):
        options(tmp_path / "nothing").check()
    with pytest.raises(FewbitError, match="--mean"):
        options(None, mean="x").check()
    options(None).check()


def test_batches_of_the_wanted_size(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(20, dtype=np.float32).reshape(10, 2))
    source = LoadedModel(nn.Linear(2, 2), "net", "factory")
    batches = list(options(tmp_path / "x.npy", samples=6, batch_size=4).load(source))
    assert [tuple(batch.shape) for batch in batches if isinstance(batch, torch.Tensor)] == [(4, 2), (2, 2)]


def test_data_must_be_named() -> None:
    with pytest.raises(FewbitError, match="--data"):
        options(None).load(LoadedModel(nn.Linear(2, 2), "net", "factory"))


def test_pictures_are_prepared_as_told(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (40, 40), (255, 0, 0)).save(tmp_path / "red.png")
    source = LoadedModel(nn.Linear(2, 2), "net", "factory")
    loaded = options(tmp_path, image_size=16, mean="0.5,0.5,0.5", std="0.25,0.25,0.25").load(source)
    (batch,) = loaded
    assert isinstance(batch, torch.Tensor)
    assert batch.shape == (1, 3, 16, 16)
    assert batch[0, :, 0, 0].tolist() == pytest.approx([2.0, -2.0, -2.0])


def test_language_models_calibrate_on_64_windows_of_512_unless_told_otherwise() -> None:
    open_ = DataOptions(None, None, 32, None, None, None, None).of_language()
    assert (open_.samples, open_.tokens) == (64, 512)
    told = DataOptions(None, 8, 32, None, None, None, 128).of_language()
    assert (told.samples, told.tokens) == (8, 128)


@pytest.mark.parametrize(
    ("data", "changed", "said"),
    [
        (None, {"batch_size": 4}, "--batch-size does nothing without --data; leave it out"),
        (None, {"samples": 8, "tokens": 32}, "--samples/--windows and --tokens/--length do nothing without --data"),
        (None, {"tokenizer": Path("there")}, "--tokenizer does nothing without --data"),
        ("x.npy", {"image_size": 32, "mean": "0.5"}, "--image-size and --mean do nothing for arrays, which .*x.npy"),
        ("x.npy", {"tokens": 32}, "--tokens/--length does nothing for arrays"),
        ("texts", {"std": "0.5", "samples": 2}, "--std does nothing for text, which .*texts holds"),
        ("pictures", {"tokens": 4, "image_size": 8}, "--tokens/--length does nothing for pictures"),
    ],
)
def test_options_that_do_nothing_are_told(
    tmp_path: Path, data: str | None, changed: dict[str, object], said: str
) -> None:
    for name in ("x.npy", "texts/one.txt", "pictures/one.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FewbitError, match=said):
        options(None if data is None else tmp_path / data, **changed).check()


def test_options_that_do_something_pass(tmp_path: Path) -> None:
    for name in ("x.npy", "one.txt", "pictures.zip", "unknown.bin"):
        (tmp_path / name).write_bytes(b"")
    both: dict[str, object] = {"samples": 2, "batch_size": 4}
    options(tmp_path / "x.npy", **both).check()
    options(tmp_path / "one.txt", **both, tokens=8, tokenizer=tmp_path).check()
    options(tmp_path / "pictures.zip", **both, image_size=8, mean="0", std="1").check()
    options(tmp_path / "unknown.bin", tokens=8).check()
