"""The network and its pictures: they are what they are said to be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from fewbit.demo.efficientnet import class_names, efficientnet_lite0, labelled_pictures
from fewbit.sources import ImageOptions, load_model
from fewbit.sources.preparation import resolve

SAMPLE = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenet-sample-dev.zip"


def test_a_thousand_class_names_in_imagenets_order() -> None:
    names = class_names()
    assert len(names) == 1000
    assert all(name == name.strip() and name for name in names)
    assert len(set(names)) == 998  # two cranes (a bird and a machine) and two maillots
    known = {
        0: "tench",
        99: "goose",
        207: "golden retriever",
        388: "giant panda",
        609: "jeep",
        999: "toilet tissue",
    }
    assert {index: names[index] for index in known} == known


@pytest.mark.shared
@pytest.mark.skipif(not SAMPLE.exists(), reason="the team's shared data folder is not beside the repository")
def test_class_names_against_labelled_files() -> None:
    names = class_names()
    for file in zipfile.ZipFile(SAMPLE).namelist():
        index, _, name = Path(file).stem.split("_", 2)
        assert names[int(index)].replace(" ", "_").replace("-", "_").lower() == name.replace("-", "_").lower()


@pytest.mark.demo
def test_the_network_sees_eighteen_of_twenty() -> None:
    pictures = labelled_pictures()
    assert pictures.inputs.shape == (20, 3, 224, 224)
    assert pictures.files[1] == "imagenet_01_559.jpg"
    assert pictures.labels[:4].tolist() == [243, 559, 438, 990]
    model = efficientnet_lite0()
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    with torch.no_grad():
        hits = model(pictures.inputs).argmax(dim=1) == pictures.labels
    assert int(hits.sum()) == 18


@pytest.mark.demo
def test_pictures_are_prepared_as_the_network_was_trained() -> None:
    """(pixel - 127) / 128: whole numbers again after times 128, from -127 to 128."""
    pixels = labelled_pictures().inputs * 128
    assert torch.equal(pixels, pixels.round())
    assert (pixels.min().item(), pixels.max().item()) == (-127, 128)


@pytest.mark.demo
def test_the_network_is_a_source_that_knows_its_preparation() -> None:
    loaded = load_model("fewbit.demo.efficientnet:efficientnet_lite0")
    assert loaded.kind == "factory"
    how = resolve(ImageOptions(), loaded.model)
    assert (how.size, how.resize, how.interpolation) == (224, 256, "bicubic")
    assert how.mean == (127 / 255,) * 3
