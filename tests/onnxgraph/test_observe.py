from __future__ import annotations

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
            found.setdefault(name, []).append(array)

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
