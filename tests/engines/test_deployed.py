from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from integer_cases import KINDS, Residual, pictures, quantized, seeded
from torch import Tensor, nn

import fewbit
from fewbit import engines
from fewbit.errors import FewbitError
from fewbit.integer.agreement import agreement
from fewbit.nn import quantized_layers
from fewbit.recipe import Recipe

# LiteRT takes one batch size and not every operation: tests/integer/test_tflite.py
INSTALLED = [name for name in engines.names() if engines.get(name).installed() and name != "litert"]


def test_the_engines_there_are() -> None:
    assert engines.names() == ["litert", "onnxruntime", "openvino", "reference", "torch"]
    with pytest.raises(FewbitError, match="no engine is called 'tensorrt'"):
        engines.get("tensorrt")


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_computes_the_same_integers(kind: type[nn.Module], name: str) -> None:
    deployed = fewbit.deploy(quantized(kind), pictures(), name)
    rows = agreement(deployed.network, deployed.codes(pictures()))
    assert max(row.largest for row in rows) <= 1
    assert sum(row.different for row in rows) <= 0.002 * sum(row.values for row in rows)
    with torch.no_grad():
        wanted = quantized(kind)(pictures(4))
    result = deployed(pictures(4))  # another batch size than the example's
    assert result.shape == wanted.shape
    assert float((result - wanted).abs().mean()) < 0.1 * float(wanted.std())
    assert name in repr(deployed)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("recipe", ["W4A4", "W2A2", Recipe("W8A8", activations="int8/tensor/sym/narrow")])
def test_codes_of_fewer_values_than_a_byte_has_saturate_where_they_end(name: str, recipe: Recipe | str) -> None:
    model = fewbit.quantize(seeded(Residual()), recipe, [pictures()])
    louder = 3 * pictures()  # beyond the ranges of every layer
    deployed = fewbit.deploy(model, pictures(), name)
    codes = deployed.codes(louder)
    rows = agreement(deployed.network, codes)
    assert max(row.largest for row in rows) <= 1
    assert sum(row.different for row in rows) <= 0.002 * sum(row.values for row in rows)
    for key, affine in deployed.network.affine.items():
        assert affine.qmin <= int(codes[key].min())
        assert int(codes[key].max()) <= affine.qmax


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("recipe", ["W8A8", "W4A4"])
def test_trained_networks_keep_their_codes_in_every_engine(name: str, recipe: str) -> None:
    prepared = fewbit.prepare_qat(seeded(Residual()), recipe, [pictures()])
    optimizer = torch.optim.SGD(prepared.parameters(), 0.02)
    for _ in range(8):
        loss = F.cross_entropy(prepared(pictures()), torch.arange(6) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    converted = fewbit.convert(prepared)
    deployed = fewbit.deploy(converted, pictures(), name)
    rows = agreement(deployed.network, deployed.codes(pictures()))
    assert max(row.largest for row in rows) <= 1
    assert sum(row.different for row in rows) <= 0.002 * sum(row.values for row in rows)
    for layer, quantizer in ((n, m.input_quantizer) for n, m in quantized_layers(converted).items()):
        node = next(node for node in deployed.network.nodes if node.layer == layer)
        affine = deployed.network.affine[node.inputs[0]]
        assert affine.scale == float(quantizer.scale)  # what was trained is what is deployed
        assert affine.zero_point == int(0 if quantizer.zero_point is None else quantizer.zero_point)


def test_another_shape_than_an_engine_was_made_for_is_told() -> None:
    pytest.importorskip("onnxruntime")
    deployed = fewbit.deploy(quantized(Residual), pictures(1), "onnxruntime")
    assert deployed(pictures(1)).shape == (1, 5)
    with pytest.raises(FewbitError, match=r"refused inputs of float32 \(4, 3, 8, 8\).*made for float32 \(1, 3, 8, 8\)"):
        deployed(pictures(4))
    with pytest.raises(FewbitError, match="two samples or more, which leaves the batch size open"):
        deployed.codes(pictures(4))


def test_what_is_no_float_tensor_is_told() -> None:
    deployed = fewbit.deploy(quantized(Residual), pictures(), "onnxruntime")
    with pytest.raises(FewbitError, match="takes tensors, not NumPy arrays"):
        deployed(pictures().numpy())
    with pytest.raises(FewbitError, match=r"refused inputs of float64 \(6, 3, 8, 8\); .* made for float32"):
        deployed(pictures().double())


def test_a_file_is_not_replaced_unasked_and_its_ending_is_known(tmp_path: Path) -> None:
    deployed = fewbit.deploy(quantized(Residual), pictures(), "torch")
    path = deployed.save(tmp_path / "net.onnx")
    path.write_bytes(b"mine")
    with pytest.raises(FewbitError, match=r"net\.onnx exists already: pass overwrite=True"):
        deployed.save(path)
    assert path.read_bytes() == b"mine"
    assert deployed.save(path, overwrite=True).read_bytes() != b"mine"
    for name in ("net", "net.foo", "net.onnx.bak"):
        with pytest.raises(FewbitError, match=r"saved as \.onnx or \.tflite, not as net"):
            deployed.save(tmp_path / name)


class Largest(nn.Module):
    """Ends in the largest or smallest value of a picture; the clamp has a whole and a broken number."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv, self.head = how, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "pool":
            return self.head(F.adaptive_max_pool2d(x, 1).flatten(1)).clamp(-2, 2.5)
        return self.head(x.amax((2, 3)) if self.how == "max" else x.amin((2, 3))).clamp(-2, 2.5)


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("how", ["max", "min", "pool"])
def test_largest_values_are_the_same_in_every_engine(how: str, name: str) -> None:
    model = fewbit.quantize(seeded(Largest(how)), "W8A8", [pictures()])
    deployed = fewbit.deploy(model, pictures(), name)
    found, wanted = deployed.codes(pictures()), fewbit.deploy(model, pictures(), "reference").codes(pictures())
    assert len(found) == 2  # of the picture, and of its largest values
    assert max(int((found[key].int() - wanted[key].int()).abs().max()) for key in wanted) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_saved_files_keep_the_rules_of_their_runtime(kind: type[nn.Module], tmp_path: Path) -> None:
    ir = pytest.importorskip("onnx_ir")
    from fewbit.onnxgraph import rules

    path = tmp_path / "net.onnx"
    fewbit.deploy(quantized(kind), pictures(), "onnxruntime").save(path)
    assert rules.violations(ir.load(path), "onnxruntime") == []


@pytest.mark.parametrize("kind", KINDS)
def test_exports_quantized_for_tensorrt_keep_its_rules(kind: type[nn.Module], tmp_path: Path) -> None:
    ir = pytest.importorskip("onnx_ir")
    from fewbit.onnxgraph import rules

    source, out = tmp_path / "float.onnx", tmp_path / "codes.onnx"
    torch.onnx.export(seeded(kind()).eval(), (pictures(),), str(source), dynamo=True, verbose=False)
    fewbit.quantize(source, "W8A8", [pictures()], output=out, target="tensorrt")
    assert rules.violations(ir.load(out), "tensorrt") == []


def test_the_best_engine_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setattr(engines.get(name), "installed", lambda: False)
    assert fewbit.deploy(quantized(Residual), pictures()).engine == "torch"


def test_outputs_have_the_structure_of_the_models() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"sum": F.relu(self.a(x)) + self.b(y), "x": x}

    model = fewbit.quantize(seeded(Two()), "W8A8", [(pictures(), pictures())])
    deployed = fewbit.deploy(model, (pictures(), pictures()), "torch")
    found = deployed(pictures(2), y=pictures(2))
    wanted = model(pictures(2), pictures(2))
    assert list(found) == list(wanted)
    assert torch.equal(found["x"], wanted["x"])
    assert torch.allclose(found["sum"], wanted["sum"], atol=0.1)


def test_a_saved_network_runs_elsewhere(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    deployed = fewbit.deploy(quantized(Residual), pictures(), "torch")
    session = ort.InferenceSession(deployed.save(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pictures().numpy()})
    assert torch.allclose(torch.from_numpy(found), deployed(pictures()), atol=0.02)


def test_errors() -> None:
    with pytest.raises(FewbitError, match=r"quantized nn\.Module, not str"):
        fewbit.deploy("model", pictures())  # type: ignore[arg-type]
    with pytest.raises(FewbitError, match="static"):
        fewbit.deploy(seeded(Residual()), pictures(), "torch")
    with pytest.raises(FewbitError, match="at least 1 thread"):
        fewbit.deploy(quantized(Residual), pictures(), "torch", threads=0)
    with pytest.raises(FewbitError, match="example batch"):
        fewbit.deploy(quantized(Residual), [], "torch")
    with pytest.raises(FewbitError, match="takes 1 tensors, not 2"):
        fewbit.deploy(quantized(Residual), pictures(), "torch")(pictures(), pictures())


def test_an_example_that_the_model_does_not_take() -> None:
    model = fewbit.quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), "W8A8", [pictures()])
    with pytest.raises(FewbitError, match=r"does not take the example, float32 \(2, 4, 8, 8\): .* it takes 3 channels"):
        fewbit.deploy(model, torch.zeros(2, 4, 8, 8), "torch")


class OpenVino:
    """Stands for the package, and remembers what a model was compiled with."""

    def __init__(self) -> None:
        self.compiled: list[tuple[object, str, dict[str, object]]] = []

    def Core(self) -> OpenVino:
        return self

    def read_model(self, data: bytes) -> bytes:
        return data

    def compile_model(self, model: bytes, device: str, config: dict[str, object]) -> object:
        self.compiled.append((model, device, config))
        return self


def test_openvino_computes_in_float32_what_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    fake = OpenVino()
    monkeypatch.setattr("fewbit.engines.openvino.require", lambda *_: fake)
    monkeypatch.setattr(engines.get("openvino"), "installed", lambda: True)
    fewbit.deploy(quantized(Residual), pictures(), "openvino", threads=3)
    ((model, device, config),) = fake.compiled
    assert isinstance(model, bytes)
    assert device == "CPU"
    assert config["INFERENCE_PRECISION_HINT"] == "f32"
    assert config["INFERENCE_NUM_THREADS"] == 3
