"""Arrays: kinds of files, types of numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewbit.errors import FewbitError
from fewbit.sources import load_data

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", ">f4", "int8", "uint8", "int32", ">i8", "uint64", "bool"]
)
def test_one_npy_array_is_the_first_argument(tmp_path: Path, dtype: str) -> None:
    array = RNG.integers(0, 2, (7, 3, 2)).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    batches = load_data(tmp_path / "x.npy", batch_size=3)
    assert (batches.samples, len(batches)) == (7, 3)
    parts: list[Any] = list(batches)
    assert [len(p) for p in parts] == [3, 3, 1]
    kind = {"f": torch.float32, "i": torch.int64, "u": torch.int64, "b": torch.bool}[np.dtype(dtype).kind]
    assert all(p.dtype == kind for p in parts)
    np.testing.assert_array_equal(torch.cat(parts).numpy(), array.astype(str(kind).removeprefix("torch.")))


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_order_does_not_matter(tmp_path: Path, order: Any) -> None:
    array = np.array(RNG.standard_normal((4, 5)), dtype=np.float32, order=order)
    np.save(tmp_path / "x.npy", array)
    (batch,) = load_data(tmp_path / "x.npy")
    assert isinstance(batch, torch.Tensor)
    np.testing.assert_array_equal(batch.numpy(), array)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_several_arrays_are_arguments_by_name(tmp_path: Path, suffix: str) -> None:
    ids, mask = RNG.integers(0, 9, (6, 4)), np.ones((6, 4), dtype=bool)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez_compressed(path, input_ids=ids, attention_mask=mask)
    else:
        save_file({"input_ids": torch.tensor(ids, dtype=torch.int32), "attention_mask": torch.tensor(mask)}, path)
    parts: list[Any] = list(load_data(path, batch_size=4))
    assert [sorted(p) for p in parts] == [["attention_mask", "input_ids"]] * 2
    np.testing.assert_array_equal(torch.cat([p["input_ids"] for p in parts]).numpy(), ids)
    assert parts[0]["input_ids"].dtype == torch.int64
    assert parts[0]["attention_mask"].dtype == torch.bool


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_container_of_one_array_gives_tensors(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".npz":
        np.savez(path, x=np.ones((2, 3)))
    else:
        save_file({"x": torch.ones(2, 3, dtype=torch.bfloat16)}, path)
    (batch,) = load_data(path)
    assert isinstance(batch, torch.Tensor)
    assert torch.equal(batch, torch.ones(2, 3))


def test_a_limit_takes_evenly_spaced_samples(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.arange(10), b=np.arange(10) * 2)
    (batch,) = load_data(tmp_path / "x.npz", limit=4)
    assert isinstance(batch, dict)
    assert batch["a"].tolist() == [0, 2, 5, 7]
    assert batch["b"].tolist() == [0, 4, 10, 14]


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_python_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([Evil()], dtype=object))
    np.savez(tmp_path / "x.npz", x=np.array([Evil()], dtype=object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(FewbitError, match=rf"{name} cannot be read: it holds Python objects"):
            load_data(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.array(["a", "b"]), "<U1 values"),
        (np.ones(3, dtype=complex), "complex128 values"),
        (np.zeros(2, dtype=[("a", "f4")]), "a model takes numbers"),
        (np.float32(3.0), "holds no samples"),
        (np.zeros((0, 3)), "holds no samples"),
        (np.zeros((3, 0)), "holds no samples"),
        (np.array([2**63], dtype=np.uint64), "beyond int64"),
    ],
)
def test_arrays_that_are_no_data_are_told(tmp_path: Path, array: Any, told: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(FewbitError, match=told) as caught:
        load_data(tmp_path / "x.npy")
    assert "x.npy" in str(caught.value)


def test_arrays_of_different_lengths_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(3), b=np.ones(4))
    with pytest.raises(FewbitError, match=r"different numbers of samples \(a 3, b 4\)"):
        load_data(tmp_path / "x.npz")
    save_file({}, tmp_path / "x.safetensors")
    with pytest.raises(FewbitError, match="no arrays"):
        load_data(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "missing"])
def test_damaged_files_are_named(tmp_path: Path, name: str, damage: str) -> None:
    path = tmp_path / name
    array = RNG.standard_normal((50, 8))
    if name == "x.npy":
        np.save(path, array)
    elif name == "x.npz":
        np.savez(path, x=array)
    else:
        save_file({"x": torch.tensor(array)}, path)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[: len(data) // 2], "garbage": b"garbage!" * 9, "empty": b""}[damage])
    with pytest.raises(FewbitError, match=name) as caught:
        load_data(path)
    assert "\n" not in str(caught.value)
