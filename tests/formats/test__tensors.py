"""Tensors on disk: stored once, restored as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from fewbit.errors import FewbitError
from fewbit.formats import _tensors

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint8,
    torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64,
]  # fmt: skip


def holder(**tensors: Tensor) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    return module


def round_trip(path: Path, module: nn.Module, **constants: Tensor) -> tuple[_tensors.Stored, dict[str, Tensor]]:
    stored = _tensors.collect(module, constants)
    size, digest = _tensors.write(path, stored)
    assert (size, digest) == (path.stat().st_size, _tensors.sha256(path))
    slots = {**module.state_dict(keep_vars=True), **constants}
    return stored, _tensors.read([path], _tensors.Stored({}, stored.aliases, stored.orders), slots)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(), (1,), (0, 3), (3, 5), (2, 3, 4, 5)]
    raw = {f"t{i}": torch.randint(0, 2, shape).to(dtype) for i, shape in enumerate(shapes)}
    _, read = round_trip(tmp_path / "x", holder(**raw))
    for name, tensor in raw.items():
        assert read[name].dtype == dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_nan_and_infinity_keep_their_bits(tmp_path: Path) -> None:
    tensor = torch.tensor([0x7FC00001, 0x7F800000, -0x800000, -0x80000000], dtype=torch.int32).view(torch.float32)
    _, read = round_trip(tmp_path / "x", holder(t=tensor))
    assert torch.equal(read["t"].view(torch.int32), tensor.view(torch.int32))


def test_a_tied_tensor_is_stored_once_and_restored_tied(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.randn(4, 3))
    module = holder(a=weight, b=torch.randn(4), c=weight)
    stored, read = round_trip(tmp_path / "x", module)
    assert stored.aliases == {"c": "a"}
    assert read["a"] is read["c"]
    assert isinstance(read["a"], nn.Parameter)
    assert torch.equal(read["a"], weight)
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert sorted(file.keys()) == ["a", "b"]


def test_overlapping_views_are_stored_apart_unless_they_are_the_same(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    module = holder(whole=whole, head=whole[:4], same=whole[0:12], square=whole.view(3, 4))
    stored, read = round_trip(tmp_path / "x", module)
    assert stored.aliases == {"same": "whole"}
    for name, tensor in module.state_dict().items():
        assert torch.equal(read[name], tensor), name
    assert (tmp_path / "x").stat().st_size < 4 * (12 + 4 + 12) + 400


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        torch.randn(5, 7).t(),
        torch.randn(2, 3, 4).permute(2, 0, 1),
    ],
    ids=["channels_last", "channels_last_3d", "transposed", "permuted"],
)
def test_dense_tensors_keep_their_order_in_memory(tmp_path: Path, tensor: Tensor) -> None:
    stored, read = round_trip(tmp_path / "x", holder(t=tensor))
    assert list(stored.orders) == ["t"]
    assert torch.equal(read["t"], tensor)
    assert read["t"].stride() == tensor.stride()


def test_gaps_and_expansions_come_back_contiguous(tmp_path: Path) -> None:
    raw = {"gap": torch.randn(6, 6)[::2, ::3], "wide": torch.randn(1, 4).expand(3, 4), "tail": torch.randn(9)[4:]}
    _, read = round_trip(tmp_path / "x", holder(**raw))
    for name, tensor in raw.items():
        assert torch.equal(read[name], tensor)
        assert read[name].is_contiguous()
        assert read[name].untyped_storage().nbytes() == 4 * tensor.numel()


def test_constants_are_stored_beside_the_state(tmp_path: Path) -> None:
    _, read = round_trip(tmp_path / "x", holder(a=torch.ones(2)), b=torch.zeros(3))
    assert sorted(read) == ["a", "b"]


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    raw = {f"name{i}": torch.randn(i + 1).to(DTYPES[i % 4]) for i in range(20)}
    for name in ("one", "two"):
        _tensors.write(tmp_path / name, _tensors.collect(holder(**raw), {}))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_read_tensors_do_not_depend_on_the_file(tmp_path: Path) -> None:
    _, read = round_trip(tmp_path / "x", holder(t=torch.ones(1000)))
    (tmp_path / "x").write_bytes(b"")
    assert torch.equal(read["t"], torch.ones(1000))


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    for tensor in (torch.ones(2, device="meta"), torch.ones(2, 2).to_sparse()):
        with pytest.raises(FewbitError, match=r"the tensor odd cannot be saved"):
            _tensors.collect(holder(odd=tensor), {})

    class Extra(nn.Module):
        def get_extra_state(self) -> Any:
            return {"some": "state"}

    with pytest.raises(FewbitError, match="_extra_state, which is not a tensor"):
        _tensors.collect(Extra(), {})


def read_as(path: Path, stored: dict[str, Tensor], slots: dict[str, Tensor], **tables: Any) -> dict[str, Tensor]:
    _tensors.write(path, _tensors.Stored(stored))
    return _tensors.read([path], _tensors.Stored({}, **tables), slots)


@pytest.mark.parametrize(
    ("stored", "slots", "tables", "message"),
    [
        ({"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}, {}, "lacks the tensor b"),
        ({"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2)}, {}, "unexpected tensor b"),
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}, {}, "shape 2×3 instead of 3×2"),
        ({"a": torch.ones(1)}, {"a": torch.ones(())}, {}, "shape 1 instead of \\(\\)"),
        ({"a": torch.ones(2, dtype=torch.int8)}, {"a": torch.ones(2, dtype=torch.uint8)}, {}, "int8 instead of"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2, dtype=torch.int32)}, {}, "float32 instead of torch.int32"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, {"aliases": {"z": "a"}}, "'z' cannot be the same as 'a'"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}, {"aliases": {"a": "a"}}, "cannot be the same"),
        (
            {"a": torch.ones(2)},
            {"a": torch.ones(2), "b": torch.ones(3)},
            {"aliases": {"b": "a"}},
            "tensor b has the shape",
        ),
        ({"a": torch.ones(2, 2)}, {"a": torch.ones(2, 2)}, {"orders": {"a": [0, 0]}}, "order of dimensions"),
        ({"a": torch.ones(2, 2)}, {"a": torch.ones(2, 2)}, {"orders": {"a": [0]}}, "order of dimensions"),
        ({"a": torch.ones(2, 2)}, {"a": torch.ones(2, 2)}, {"orders": {"q": [0]}}, "order of dimensions"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, stored: dict[str, Tensor], slots: dict[str, Tensor], tables: dict[str, Any], message: str
) -> None:
    with pytest.raises(FewbitError, match=message) as caught:
        read_as(tmp_path / "x", stored, slots, **tables)
    assert str(tmp_path / "x") in str(caught.value)


def test_a_float_type_may_come_back_as_another(tmp_path: Path) -> None:
    read = read_as(tmp_path / "x", {"a": torch.ones(2, dtype=torch.bfloat16)}, {"a": torch.ones(2)})
    assert read["a"].dtype == torch.bfloat16


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"\x08" + bytes(7) + b"nonsense"):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(FewbitError, match=r"x (is damaged|does not fit)"):
            _tensors.read([tmp_path / "x"], _tensors.Stored(), {"a": torch.ones(1)})
