from __future__ import annotations

from threading import Lock

import numpy as np
import pytest
from onnx_cases import Maker, as_ir, convnet, pictures, run

from fewbit.errors import FewbitError
from fewbit.onnxgraph import observe


def seen_by(batches: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, piece: int) -> dict[str, np.ndarray]:
    monkeypatch.setattr(observe, "PIECE_BYTES", piece)
    model = as_ir(convnet())
    found: dict[str, list[np.ndarray]] = {}
    sizes: list[int] = []

    def see(tensors: dict[str, np.ndarray], samples: int) -> None:
        sizes.append(samples)
        for name, array in tensors.items():
            found.setdefault(name, []).append(array.copy())

    assert observe.stream(model, ["x", "sum", "logits"], batches, see, threads=1) == len(batches)
    assert sum(sizes) == sum(len(batch) for batch in batches)
    assert [value.name for value in model.graph.outputs] == ["logits"]
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


@pytest.mark.parametrize("piece", [1, 20_000, 10**9])
def test_pieces_of_any_size_show_the_same_tensors(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    batches = [pictures(5), pictures(3, seed=8)]
    found = seen_by(batches, monkeypatch, piece)
    np.testing.assert_array_equal(found["x"], np.concatenate(batches))
    np.testing.assert_allclose(found["logits"], run(convnet(), {"x": np.concatenate(batches)})[0], rtol=1e-5, atol=1e-5)
    assert found["sum"].shape == (8, 8, 16, 16)


def test_pieces_are_seen_in_their_order_by_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "PIECE_BYTES", 1)
    batches = [np.full((3, 3, 16, 16), index, np.float32) for index in range(8)]
    inside, seen = Lock(), []

    def see(tensors: dict[str, np.ndarray], samples: int) -> None:
        assert inside.acquire(blocking=False)
        seen.append((float(tensors["x"][0, 0, 0, 0]), float(tensors["logits"].sum())))
        inside.release()

    observe.stream(as_ir(convnet()), ["x", "logits"], batches, see, threads=2)
    assert [value for value, _ in seen] == [index for index in range(8) for _ in range(3)]
    wanted = run(convnet(), {"x": np.concatenate(batches)})[0].sum(1)
    np.testing.assert_allclose([total for _, total in seen], wanted, rtol=1e-4, atol=1e-4)


def test_an_error_in_the_middle_ends_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "PIECE_BYTES", 1)

    def see(tensors: dict[str, np.ndarray], samples: int) -> None:
        if tensors["x"].max() > 2:
            raise ValueError("enough")

    batches = [np.full((2, 3, 16, 16), index, np.float32) for index in range(8)]
    with pytest.raises(ValueError, match="enough"):
        observe.stream(as_ir(convnet()), ["x", "logits"], batches, see, threads=2)


def test_sizes_that_hang_on_values_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "PIECE_BYTES", 1)
    m = Maker()
    m.conv("x", "y", 2, 3)
    m.node("Cast", [m.node("NonZero", [m.node("Relu", ["y"], "relu")], "places")], "where", to=1)
    counts: list[int] = []
    batches = [np.zeros((1, 3, 16, 16), np.float32), *(pictures(1, seed=s) for s in range(3))]
    batches[2][:, :, 8:] = 0
    see = lambda tensors, _: counts.append(tensors["where"].shape[1])  # noqa: E731
    observe.stream(as_ir(m.model({"x": ["n", 3, 16, 16]}, ["where"])), ["where"], batches, see, threads=1)
    wanted = [run(m.model({"x": ["n", 3, 16, 16]}, ["where"]), {"x": batch})[0].shape[1] for batch in batches]
    assert counts == wanted


def test_a_fixed_batch_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    m = Maker()
    m.conv("x", "y", 2, 3)
    monkeypatch.setattr(observe, "PIECE_BYTES", 1)
    sizes: list[int] = []
    observe.stream(as_ir(m.model({"x": [4, 3, 16, 16]}, ["y"])), ["y"], [pictures()], lambda _, n: sizes.append(n))
    assert sizes == [4]


def test_no_data_and_data_that_does_not_fit_are_told() -> None:
    with pytest.raises(FewbitError, match="data is empty"):
        observe.observe(as_ir(convnet()), {}, [])
    with pytest.raises(FewbitError, match="calibration batch 2"):
        observe.observe(as_ir(convnet()), {}, [pictures(), pictures(size=4, channels=2)])


def test_inputs_and_constants_may_be_looked_at_too() -> None:
    model = as_ir(convnet())
    constant = next(iter(model.graph.initializers))
    before = [value.name for value in model.graph.outputs]
    with observe.exposed(model, ["x", constant]):
        assert [value.name for value in model.graph.outputs] == ["x", constant]
    assert [value.name for value in model.graph.outputs] == before
