from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fewbit.errors import FewbitError
from fewbit.sources.onnx_data import load_onnx_data
from fewbit.sources.preparation import ImageOptions


class Model:
    """As much of a model as data needs to know."""

    def __init__(self, shape: list[object]) -> None:
        value = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))  # type: ignore[arg-type]
        self.graph = ir.Graph([value], [], nodes=[])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        image.fromarray(np.full((40, 50, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def load(path: Path, shape: list[object], batch: int | None = None, **image: object) -> list[torch.Tensor]:
    options = ImageOptions(**image)  # type: ignore[arg-type]
    batch = 2 if batch is None and not isinstance(shape[0], int) else batch
    found = load_onnx_data(path, Model(shape), path, batch_size=batch, limit=None, image=options, length=8)
    assert len(found) == len(list(found))
    return list(found)  # type: ignore[arg-type]


def test_size_layout_and_batch_are_the_models(photos: Path) -> None:
    assert [b.shape for b in load(photos, ["n", 3, 32, 32])] == [(2, 3, 32, 32), (1, 3, 32, 32)]
    assert [b.shape for b in load(photos, [1, 24, 24, 3])] == [(1, 24, 24, 3)] * 3
    assert load(photos, ["n", 3, "h", "w"], size=16)[0].shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("shape", "told"),
    [(["n", 3, "h", "w"], "no fixed size"), (["n", 3, 48, 192], "no square"), (["n", 10], "takes no pictures")],
)
def test_pictures_that_do_not_fit_are_told(photos: Path, shape: list[object], told: str) -> None:
    with pytest.raises(FewbitError, match=told):
        load(photos, shape)


def test_arrays_are_cut_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 10), np.float32))
    assert [len(b) for b in load(tmp_path / "x.npy", [1, 10])] == [1] * 5
    assert [len(b) for b in load(tmp_path / "x.npy", [2, 10], 2)] == [2, 2, 1]
    with pytest.raises(FewbitError, match="'x' takes batches of 1 and no others; leave --batch-size out"):
        load(tmp_path / "x.npy", [1, 10], 4)
