"""Reading safetensors folders, and refusing what is damaged."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewbit.errors import FewbitError
from fewbit.sequential.checkpoint import INDEX, Checkpoint

TYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shards = {"one.safetensors": {"a": torch.arange(6.0).reshape(2, 3)}, "two.safetensors": {"b": torch.ones(4)}}
    for file, tensors in shards.items():
        save_file(tensors, tmp_path / file)
    index = {"weight_map": {name: file for file, tensors in shards.items() for name in tensors}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "x": torch.randn(3, 5).to(dtype),
        "scalar": torch.ones(()).to(dtype),
        "empty": torch.empty(0, 4).to(dtype),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in tensors.items():
        got = checkpoint.read(name)
        assert got.dtype == dtype
        assert got.shape == tensor.shape
        assert torch.equal(got.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_shards_are_one_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    assert checkpoint.entries.keys() == {"a", "b"}
    assert checkpoint.nbytes == 40
    assert torch.equal(checkpoint.read("a"), torch.arange(6.0).reshape(2, 3))


def test_a_fingerprint_tells_of_changes(folder: Path) -> None:
    before = Checkpoint(folder).fingerprint()
    assert Checkpoint(folder).fingerprint() == before
    save_file({"b": torch.ones(5)}, folder / "two.safetensors")
    after = Checkpoint(folder).fingerprint()
    assert after["one.safetensors"] == before["one.safetensors"]
    assert after["two.safetensors"] != before["two.safetensors"]


def test_missing_files_and_tensors_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FewbitError, match="holds no tensor c"):
        Checkpoint(folder).read("c")
    save_file({"other": torch.ones(4)}, folder / "two.safetensors")
    with pytest.raises(FewbitError, match=r"two\.safetensors lacks the tensor b"):
        Checkpoint(folder)
    (folder / "two.safetensors").unlink()
    with pytest.raises(FewbitError, match=r"two\.safetensors is missing"):
        Checkpoint(folder)
    with pytest.raises(FewbitError, match=r"holds no \.safetensors weights"):
        Checkpoint(tmp_path / "nowhere")


def test_two_shards_with_one_tensor_are_refused(tmp_path: Path) -> None:
    for file in ("one", "two"):
        save_file({"a": torch.ones(2)}, tmp_path / f"{file}.safetensors")
    with pytest.raises(FewbitError, match="both hold the tensor a"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": "../x.safetensors"}}'])
def test_a_damaged_index_is_refused(folder: Path, index: str) -> None:
    (folder / INDEX).write_text(index)
    with pytest.raises(FewbitError, match=INDEX.replace(".", r"\.")):
        Checkpoint(folder)


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.ones(3)}, path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FewbitError, match=r"model\.safetensors is damaged"):
            Checkpoint(tmp_path)


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 something else entirely",
        struct.pack("<Q", 2**63) + b"{}",
        header(a={"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}),
        header(a={"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}),
        header(a={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header(a={"dtype": "Q9", "shape": [4], "data_offsets": [0, 16]}),
        header(
            a={"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
            b={"dtype": "U8", "shape": [9], "data_offsets": [0, 9]},
        ),
        header(a={"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}),
        header(a={"dtype": "F32", "shape": "x", "data_offsets": [0]}),
        header(a=3),
        struct.pack("<Q", 4) + b"[[]]",
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FewbitError, match=r"model\.safetensors is damaged"):
        Checkpoint(tmp_path)


def test_an_index_that_names_another_shard_is_refused(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    named = json.loads(index.read_text())
    names = sorted(named["weight_map"])
    named["weight_map"][names[0]] = next(file for file in ("one.safetensors", "two.safetensors")
                                         if file != named["weight_map"][names[0]])  # fmt: skip
    index.write_text(json.dumps(named))
    with pytest.raises(FewbitError, match=f"lacks the tensor {names[0]}"):
        Checkpoint(folder)
