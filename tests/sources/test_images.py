"""Pictures: order, preparation against an independent computation, where the numbers come from, damage."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewbit.errors import FewbitError
from fewbit.sources import ImageOptions, load_data
from fewbit.sources.preparation import Preparation, prepare, resolve

Image = pytest.importorskip("PIL.Image", reason="needs fewbit[images]")
Paint = Callable[..., Path]
PLAIN = ImageOptions(size=8, resize=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def tensors(batches: Any) -> torch.Tensor:
    return torch.cat(list(batches))


def model_with(**attributes: Any) -> nn.Module:
    model = nn.Identity()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


@pytest.mark.parametrize(("width", "height"), [(40, 30), (30, 40), (30, 30), (16, 16), (16, 24), (300, 17)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preparation_matches_a_plain_computation(
    paint: Paint, tmp_path: Path, width: int, height: int, interpolation: str
) -> None:
    path = paint(tmp_path / "a.png", width, height)
    how = Preparation(12, 16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), interpolation)
    picture = Image.open(path)
    scale = 16 / min(width, height)
    scaled = picture.resize(
        (max(16, round(width * scale)), max(16, round(height * scale))), getattr(Image, interpolation.upper())
    )
    pixels = np.asarray(scaled, dtype=np.float64) / 255
    top, left = (pixels.shape[0] - 12) // 2, (pixels.shape[1] - 12) // 2
    expected = (pixels[top : top + 12, left : left + 12] - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3]
    found = prepare(path.read_bytes(), how, "a")
    assert found.shape == (3, 12, 12)
    assert found.dtype == torch.float32
    assert found.is_contiguous()
    np.testing.assert_allclose(found.numpy(), expected.transpose(2, 0, 1), atol=2e-6)


def test_exact_values_of_exact_means(paint: Paint, tmp_path: Path) -> None:
    """(pixel - 127) / 128 is exact in float32, and comes out so though it is written as fractions of 255."""
    path = paint(tmp_path / "a.png", 8, 8)
    how = Preparation(8, 8, (127 / 255,) * 3, (128 / 255,) * 3, "bicubic")
    pixels = torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1).float()
    assert torch.equal(prepare(path.read_bytes(), how, "a"), (pixels - 127) / 128)


@pytest.mark.parametrize("archive", [False, True])
def test_order_is_that_of_the_names(paint: Paint, tmp_path: Path, archive: bool) -> None:
    folder = tmp_path / "pictures"
    names = ["b/1.png", "a/2.PNG", "a/10.png", "z.jpeg", "c.jpg"]
    for seed, name in enumerate(names):
        paint(folder / name, 8, 8, seed)
    for hidden in (".thumbs/x.png", "__MACOSX/c.jpg", "._z.png", "readme.txt"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"not a picture")
    source = folder
    if archive:
        source = tmp_path / "pictures.zip"
        with zipfile.ZipFile(source, "w") as out:
            for path in sorted((p for p in folder.rglob("*") if p.is_file()), reverse=True):
                out.write(path, path.relative_to(folder).as_posix())
    batches = load_data(source, batch_size=2, image=PLAIN)
    assert batches.samples == 5
    assert len(batches) == 3
    assert [len(b) for b in batches] == [2, 2, 1]
    expected = [prepare((folder / n).read_bytes(), resolve(PLAIN), n) for n in sorted(names)]
    assert torch.equal(tensors(batches), torch.stack(expected))
    assert torch.equal(tensors(batches), torch.stack(expected))  # a second pass gives the same


def test_a_limit_takes_evenly_spaced_pictures(paint: Paint, tmp_path: Path) -> None:
    for i in range(10):
        paint(tmp_path / f"{i}.png", 8, 8, i)
    everything = tensors(load_data(tmp_path, image=PLAIN))
    assert torch.equal(tensors(load_data(tmp_path, image=PLAIN, limit=5)), everything[::2])
    assert torch.equal(tensors(load_data(tmp_path, image=PLAIN, limit=99)), everything)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "LA"])
def test_every_mode_becomes_rgb(paint: Paint, tmp_path: Path, mode: str) -> None:
    path = paint(tmp_path / "a.png", 10, 10, mode=mode)
    assert tensors(load_data(tmp_path, image=PLAIN)).shape == (1, 3, 8, 8)
    assert path.exists()


def test_one_mean_makes_grey(paint: Paint, tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png", 8, 8)
    grey = tensors(load_data(tmp_path, image=ImageOptions(size=8, resize=8, mean=(0.0,), std=(1.0,))))
    assert torch.equal((grey * 255).round()[0, 0], torch.tensor(np.asarray(Image.open(path).convert("L"))).float())


def test_numbers_come_from_options_then_model_then_custom() -> None:
    timm = {
        "input_size": (3, 64, 64),
        "crop_pct": 0.8,
        "mean": (0.1,) * 3,
        "std": (0.2,) * 3,
        "interpolation": "bilinear",
    }
    assert resolve(ImageOptions()) == Preparation(224, 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
    for model in (
        model_with(default_cfg=timm),
        model_with(pretrained_cfg=SimpleNamespace(**timm)),
        model_with(pretrained_cfg=timm, default_cfg={"mean": (9.0,) * 3}),
    ):
        assert resolve(ImageOptions(), model) == Preparation(64, 80, (0.1,) * 3, (0.2,) * 3, "bilinear")
        mine = ImageOptions(size=32, mean=(0.3,) * 3, interpolation="bicubic")
        assert resolve(mine, model) == Preparation(32, 37, (0.3,) * 3, (0.2,) * 3, "bicubic")
        assert resolve(ImageOptions(resize=70), model).resize == 70


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3,
             "image_std": [0.5] * 3, "resample": 2},
            Preparation(32, 40, (0.5,) * 3, (0.5,) * 3, "bilinear"),
        ),
        (
            {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preparation(32, 32, (0.5,) * 3, (0.5,) * 3, "bicubic"),
        ),
        ({"size": 32, "crop_size": 24, "do_center_crop": False},
         Preparation(32, 32, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")),
    ],
)  # fmt: skip
def test_numbers_of_a_hugging_face_folder(tmp_path: Path, config: dict[str, Any], expected: Preparation) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert resolve(ImageOptions(), model_with(name_or_path=str(tmp_path))) == expected
    assert resolve(ImageOptions(), model_with(name_or_path="nobody/nothing")) == resolve(ImageOptions())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (ImageOptions(size=0), "cut to 0"),
        (ImageOptions(size=-3), "cut to -3"),
        (ImageOptions(size=32, resize=16), "scaled to 16 pixels and then cut to 32"),
        (ImageOptions(mean=(0.5,)), "one number or three"),
        (ImageOptions(std=(0.1, 0.0, 0.1)), "std above 0"),
        (ImageOptions(std=(0.1, float("nan"), 0.1)), "std above 0"),
        (ImageOptions(mean=(0.1, 0.1), std=(0.1, 0.1)), "one number or three"),
        (ImageOptions(interpolation="nearest"), "neither bicubic nor bilinear"),
    ],
)
def test_wrong_options_are_told(options: ImageOptions, told: str) -> None:
    with pytest.raises(FewbitError, match=told):
        resolve(options)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "header only"])
def test_a_damaged_picture_is_named(paint: Paint, tmp_path: Path, suffix: str, damage: str) -> None:
    paint(tmp_path / f"a{suffix}", 64, 64)
    bad = paint(tmp_path / f"b{suffix}", 64, 64)
    data = bad.read_bytes()
    cut = {
        "truncated": data[: len(data) // 2],
        "garbage": b"no picture at all",
        "empty": b"",
        "header only": data[:30],
    }
    bad.write_bytes(cut[damage])
    with pytest.raises(FewbitError, match=rf"b\{suffix} cannot be decoded") as caught:
        list(load_data(tmp_path, image=PLAIN))
    assert "\n" not in str(caught.value)


def test_other_formats_under_a_pictures_name_are_refused(tmp_path: Path) -> None:
    """Pillow would open dozens of formats, some through other programs; only the two named ones are read."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(FewbitError, match="it is no JPEG or PNG"):
        list(load_data(tmp_path, image=PLAIN))


def test_a_decompression_bomb_is_refused(paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(tmp_path / "a.png", 64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FewbitError, match=r"a\.png cannot be decoded"):
        list(load_data(tmp_path, image=PLAIN))


def test_no_pictures_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(b"")
    with pytest.raises(FewbitError, match="holds no pictures"):
        load_data(tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    with pytest.raises(FewbitError, match="holds no pictures"):
        load_data(tmp_path / "empty.zip")


def test_a_damaged_archive_is_told(paint: Paint, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as out:
        out.write(paint(tmp_path / "a.png", 64, 64), "a.png")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(FewbitError, match=r"a\.zip cannot be read as a \.zip"):
        load_data(path)
    data[200] ^= 0xFF  # inside the picture: the archive's checksum tells
    path.write_bytes(data)
    with pytest.raises(FewbitError, match=r"a\.zip"):
        list(load_data(path, image=PLAIN))


def test_an_archive_entry_that_is_too_large_is_refused(
    paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fewbit.sources.images._FILE_LIMIT", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
        out.write(paint(tmp_path / "a.png", 64, 64), "a.png")
    with pytest.raises(FewbitError, match=r"a\.png unpacks to more than"):
        list(load_data(tmp_path / "a.zip", image=PLAIN))


def test_sizes_beyond_any_memory_are_refused() -> None:
    with pytest.raises(FewbitError, match=r"114286 pixels"):
        resolve(ImageOptions(size=100_000))
