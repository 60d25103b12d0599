"""Traced models: what is written comes back, and a hostile graph calls nothing."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fewbit.formats.architecture import allowed, graph
from fewbit.formats.architecture.description import Description
from fewbit.formats.architecture.values import Undescribable
from formats import samples


class Calls(nn.Module):
    """A model whose forward is the function given."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def rebuilt(model: nn.Module) -> fx.GraphModule:
    """The model by way of JSON, with its tensors put in by hand."""
    description = graph.describe(model.eval())
    written = json.loads(json.dumps(description.to_json()))
    assert json.dumps(description.to_json()) == json.dumps(Description.from_json(written).to_json())
    built = graph.build(Description.from_json(written))
    built.load_state_dict(model.state_dict(), assign=True)
    for path, tensor in description.constants.items():
        owner, _, name = path.rpartition(".")
        built.get_submodule(owner)._buffers[name] = tensor
    return built


def shift(self: Any, x: Tensor) -> Any:
    batch, *_ = x.shape[0], None
    y = x.reshape(batch, -1) - torch.zeros((batch, 1), dtype=x.dtype, device=x.device)
    return y.clamp(min=-float("inf"), max=1e30).to(torch.float64).sum(dim=(0, 1), keepdim=True)


def structure(self: Any, x: Tensor) -> Any:
    first, second = x.chunk(2, dim=-1)
    return {"a": [first, (second, None)], "b": {"c": 3, "d": "text ' \" \\ \n }{", "e": x.shape}, "f": slice(0, 2)}


def indexing(self: Any, x: Tensor) -> Any:
    return x[..., None, 1:, ::2], x[:, torch.tensor([0, 2])], x.transpose(1, -1).contiguous().view(x.size(0), -1)


def functional(self: Any, x: Tensor) -> Any:
    x = F.pad(x, (1, 1), mode="constant", value=0.5)
    x = F.hardtanh(F.gelu(x, approximate="tanh"), -0.5, 0.5) + F.silu(x).relu_()
    x = torch.nn.functional.max_pool2d(x, kernel_size=2, stride=1, return_indices=False)
    return torch.where(x > 0, x, x.abs().sqrt()).masked_fill(x == 0, -1.0).mean((-1, -2)), torch.einsum("nchw->nc", x)


def attention(self: Any, x: Tensor) -> Any:
    q = x.flatten(2)
    return F.scaled_dot_product_attention(q, q, q, is_causal=True), F.softmax(q @ q.mT, dim=-1, dtype=torch.float64)


def parameters(self: Any, x: Tensor) -> Any:
    weight = self.w * (self.b + 1) if self.w.shape[0] == 3 else self.w
    return F.conv2d(x, weight.reshape(1, 3, 1, 1), self.conv.bias) + self.child.inner.t


def tensors_of_the_trace(self: Any, x: Tensor) -> Any:
    made = torch.arange(3.0)
    return torch.stack([x.mean((0, 2, 3)), made, made + self.kept[0]]), made


def nested() -> nn.Module:
    child = nn.Module()
    child.inner = nn.Module()
    child.inner.register_buffer("t", torch.ones(1), persistent=False)
    return child


MODELS: dict[str, nn.Module] = {
    "shift": Calls(shift),
    "structure": Calls(structure),
    "indexing": Calls(indexing),
    "functional": Calls(functional),
    "attention": Calls(attention),
    "parameters": Calls(
        parameters, w=nn.Parameter(torch.rand(3)), b=nn.Buffer(torch.rand(3)), conv=nn.Conv2d(3, 1, 1), child=nested()
    ),
    "tensors": Calls(tensors_of_the_trace, kept=[torch.ones(3)]),
    "a list or a tensor": Calls(lambda self, x: x[0] if isinstance(x, list | tuple) else x + 1),
    "attention layer": Calls(lambda self, x: self.m(*[x.flatten(2)] * 3)[0], m=nn.MultiheadAttention(64, 4)),
    "recurrent": Calls(lambda self, x: self.m(x.flatten(2))[1], m=nn.LSTM(64, 4, batch_first=True)),
    "odd names": Calls(lambda self, x: self.d["3x3-conv"](x), d=nn.ModuleDict({"3x3-conv": nn.Conv2d(3, 1, 3)})),
    "names of python": Calls(
        lambda self, x: self.torch(x) + self.getattr * x.sum(), torch=nn.Tanh(), getattr=nn.Parameter(torch.ones(1))
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_traced_model_computes_the_same(name: str) -> None:
    model, x = MODELS[name], samples.example(samples.IMAGE)
    before = set(vars(model)) | set(model._buffers) | set(model._modules)
    with torch.no_grad():
        samples.assert_same(rebuilt(model)(x), model(x))
    assert set(vars(model)) | set(model._buffers) | set(model._modules) == before


def test_quantized_layers_are_leaves_and_those_of_own_class_keep_working() -> None:
    for name in ("residual", "padded", "tied"):
        model, shape = samples.sample(name), samples.MODELS[name][1]
        built = rebuilt(model)
        samples.assert_same(built(samples.example(shape)), model(samples.example(shape)))
        assert [path for path, _ in built.named_modules(remove_duplicate=False)] == [
            path for path, _ in model.named_modules(remove_duplicate=False)
        ]


def test_optional_arguments_are_fixed_at_their_defaults() -> None:
    built = rebuilt(samples.sample("residual", None))
    x = samples.example(samples.IMAGE)
    with torch.no_grad():
        built(x=x)
    with pytest.raises(TypeError):
        built(x, torch.ones(1))


def test_a_built_graph_can_be_exported_and_copied() -> None:
    x = samples.example(samples.IMAGE)
    built = rebuilt(samples.sample("residual"))
    samples.assert_same(copy.deepcopy(built)(x)["logits"], built(x)["logits"])
    samples.assert_same(torch.export.export(built, (x,)).module()(x)["logits"], built(x)["logits"])


def keyword_only(model: nn.Module) -> nn.Module:
    class KeywordOnly(nn.Module):
        def forward(self, *, x: Tensor) -> Tensor:
            return x

    return KeywordOnly()


def with_hook(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda *_: None)
    return model


def with_own_forward(model: nn.Module) -> nn.Module:
    model.forward = types.MethodType(lambda self, x: x + 1, model)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda m: Calls(lambda self, x: x if x.sum() > 0 else -x), r"torch.fx cannot trace \(TraceError\)"),
        (lambda m: Calls(lambda self, x: torch.fft.fft(x)), "a call of .*fft"),
        (lambda m: Calls(lambda self, x: torch.linalg.svd(x)), "a call of .*svd"),
        (lambda m: Calls(lambda self, x: x.numpy()), "the tensor method numpy"),
        (lambda m: Calls(lambda self, x: x.data), "the tensor attribute data"),
        (lambda m: Calls(lambda self, x: x.cuda()), "the tensor method cuda"),
        (lambda m: Calls(lambda self, x: torch.max(x, dim=0)._asdict()), "torch.fx cannot trace|method _asdict"),
        (lambda m: Calls(lambda self, x: x.to(torch.device("cuda"))), "a value of type device"),
        (lambda m: Calls(lambda self, x: {1: x}), "a key of type int"),
        (lambda m: Calls(lambda self, x: self.b.add_(1) and self, b=nn.Buffer(torch.ones(1))), "."),
        (lambda m: Calls(lambda self, x: x if isinstance(x, Tensor) else x[0]), "asks whether a value is of a type"),
        (lambda m: Calls(lambda self, x: x if torch.is_tensor(x) else x[0]), "asks whether a value is of a type"),
        (lambda m: Calls(lambda self, x: x if isinstance(x.shape[0], int) else -x), "asks whether a value is of a"),
        (lambda m: Calls(lambda self, x: x if isinstance(x.shape, tuple) else -x), "asks whether a value is of a"),
        (keyword_only, "keyword only"),
        (with_hook, "hook"),
        (with_own_forward, "forward"),
    ],
)
def test_what_a_trace_cannot_hold_is_told(make: Callable[[nn.Module], nn.Module], reason: str) -> None:
    model = make(samples.sample("residual", None))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Undescribable, match=reason):
        graph.describe(model)
    samples.assert_same(dict(model.state_dict()), before)
    assert "isinstance" not in globals()
    assert torch.is_tensor(torch.ones(1))


# --- hostile graphs -------------------------------------------------------------------------------


def node(op: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "target": target, "args": list(args), "kwargs": kwargs}


X, FIRST = node("placeholder", "x"), {"node": 0}


def build(*nodes: Any, **changes: Any) -> fx.GraphModule:
    modules: Any = {"": {"container": "Module"}, "act": {"nn": "ReLU", "arguments": {}}}
    content: Any = {
        "kind": "graph", "class": "Net", "details": {"nodes": list(nodes)}, "modules": modules,
        "tensors": {"t": ["constant", "float32", [1]]}, "ties": {},
    }  # fmt: skip
    return graph.build(Description.from_json({**content, **changes}))


def test_the_harmless_graph_of_these_tests_is_taken() -> None:
    built = build(X, node("call_module", "act", FIRST), node("output", "output", {"node": 1}))
    assert torch.equal(built(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))


_FUNCTIONS = """
torch.load torch.save torch.hub.load torch.utils.cpp_extension.load torch.ops.load_library
torch.classes.load_library torch.jit.load torch.compile torch.from_file torch.frombuffer
torch.set_default_device torch.manual_seed torch.as_strided torch.Tensor torch.utils torch.nn.functional
torch.nn.functional.torch torch.nn.functional.handle_torch_function torch.nn.functional.boolean_dispatch
torch.nn.functional.importlib torch.nn.functional.multi_head_attention_forward
torch.nn.functional.triplet_margin_with_distance_loss torch.serialization.load torch.package.PackageImporter
torch.os torch.sys torch.importlib torch.ctypes os.system posix.system subprocess.run builtins.eval
builtins.exec builtins.open builtins.__import__ builtins.compile builtins.getattr.x builtins.setattr
builtins.print operator.attrgetter operator.methodcaller operator.call operator.itemgetter operator.setitem
operator.delitem operator.__import__ math.__class__ math.__loader__ _operator.add numpy.load pickle.Unpickler
torch.linalg.svd importlib.import_module sys.exit fewbit.load transformers.AutoModel.from_pretrained
"""
FUNCTIONS = [
    *_FUNCTIONS.split(),
    "",
    ".",
    "relu",
    "torch",
    "torch.relu ",
    "torch.nn.functional.__builtins__",
    "torch.relu;import os",
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_outside_the_list_are_refused(name: str) -> None:
    assert name not in allowed.FUNCTIONS
    with pytest.raises(ValueError, match="may not make"):
        build(X, node("call_function", name, FIRST), node("output", "output", FIRST))


_METHODS = """
numpy tofile tolist storage untyped_storage data_ptr share_memory_ apply_ map_ map2_ set_ resize_ resize_as_
register_hook backward requires_grad_ __class__ __reduce__ __reduce_ex__ __setstate__ __getattribute__
__init__ _make_subclass as_subclass as_strided as_strided_ record_stream retain_grad dequantize cuda type new
module_load unsafe_chunk __dlpack__ __array__ random_
"""
METHODS = [*_METHODS.split(), "", "relu()", "relu\n", "relu.__globals__", "a b", 'x")+__import__("os").system("true']


@pytest.mark.parametrize("name", METHODS)
def test_methods_outside_the_list_are_refused(name: str) -> None:
    assert name not in allowed.METHODS
    with pytest.raises(ValueError, match="may not make"):
        build(X, node("call_method", name, FIRST), node("output", "output", FIRST))


@pytest.mark.parametrize(
    "name", ["__class__", "__dict__", "data", "grad_fn", "_backward_hooks", "storage", "", "shape.x", 3, None]
)
def test_attributes_outside_the_list_are_refused(name: Any) -> None:
    with pytest.raises((ValueError, Undescribable)):
        build(X, node("call_function", "builtins.getattr", FIRST, name), node("output", "output", FIRST))


@pytest.mark.parametrize(
    "nodes",
    [
        [], [X], [node("output", "output", 1), node("output", "output", 1)], [node("output", "output")],
        [node("output", "output", 1, 2)], [node("output", "x", 1)], [node("root", "x"), node("output", "output", 1)],
        [node("call_function", "torch.relu", {"node": 0}), node("output", "output", 1)],
        [node("output", "output", {"node": 0})], [node("output", "output", {"node": 7})],
        [node("output", "output", 1), X], [node("get_attr", "t"), X, node("output", "output", 1)],
        [X, X, node("output", "output", 1)], [node("get_attr", "act"), node("output", "output", 1)],
        [node("get_attr", "t", 1), node("output", "output", 1)],
        [node("get_attr", "t.data"), node("output", "output", 1)],
        [node("get_attr", "__class__"), node("output", "output", 1)],
        [node("get_attr", "forward"), node("output", "output", 1)],
        [node("get_attr", "act.training"), node("output", "output", 1)],
        [X, node("call_module", "", FIRST), node("output", "output", 1)],
        [X, node("call_module", "other", FIRST), node("output", "output", 1)],
        [X, node("call_module", "act.forward", FIRST), node("output", "output", 1)],
        [X, node("call_method", "relu"), node("output", "output", 1)],
        [X, node("call_method", "relu", "text"), node("output", "output", 1)],
        [X, node("call_function", "builtins.getattr", "text", "shape"), node("output", "output", 1)],
        [X, node("call_function", "builtins.getattr", FIRST), node("output", "output", 1)],
        [X, node("call_function", "builtins.getattr", FIRST, "shape", name="T"), node("output", "output", 1)],
        [node("placeholder", "x", {"tuple": []}), node("output", "output", 1)], [3], [None], [{}],
        [{"op": 3, "target": "x", "args": [], "kwargs": {}}], [{**X, "name": "y"}],
    ],
    ids=str,
)  # fmt: skip
def test_graphs_that_no_trace_gives_are_refused(nodes: list[Any]) -> None:
    with pytest.raises(ValueError):
        build(*nodes)


INJECTIONS = [
    "x=__import__('os').system('true')", "x): pass\nimport os\ndef f(", "x: int", "*x", "**x", "x y", "x,y",
    "lambda", "None", "__x__",
    "self", "torch", "x\n", "ｘ", "é", "", "1x", "x.y", "x'", 'x"', "x#", "x;y",
]  # fmt: skip


@pytest.mark.parametrize("text", INJECTIONS)
def test_names_that_are_more_than_names_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        build(node("placeholder", text), node("output", "output", 1))
    if text not in ("self", "torch"):
        with pytest.raises(ValueError):
            build(X, node("call_function", "torch.relu", FIRST, **{text: 1}), node("output", "output", 1))
    if text not in ("self", "torch", "x", "lambda", "None", "1x", "**x"):
        with pytest.raises(ValueError):
            build(
                X,
                node("output", "output", FIRST),
                modules={"": {"container": "Module"}, text: {"nn": "ReLU", "arguments": {}}},
            )
    if text not in ("self", "torch"):
        with pytest.raises(ValueError):
            build(X, node("output", "output", FIRST), **{"class": text})


def test_text_in_arguments_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings reach the generated source by way of repr alone."""

    def forbidden(*_: Any, **__: Any) -> None:
        pytest.fail("code out of the file was run")

    monkeypatch.setattr(os, "system", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    call = "__import__('os').system('true')"
    texts = [
        call, f"') or {call} or ('", f'") or {call} or ("', f"\\') or {call} #", f"\n{call}\n", f"{{{call}}}",
        f"'''\n{call}",
        f"\r\n{call}", f"\u2028{call}", f"\x00{call}",
    ]  # fmt: skip
    values = [{"dict": [[text, text] for text in texts]}, {"tuple": texts}, {"slice": texts[:3]}, texts]
    built = build(X, node("call_method", "to", FIRST, *texts), node("output", "output", values))
    assert build(X, node("output", "output", values))(torch.ones(1)) == [
        dict(zip(texts, texts)), tuple(texts), slice(*texts[:3]), texts,
    ]  # fmt: skip
    with pytest.raises((RuntimeError, TypeError)):
        built(torch.ones(1))


def test_nothing_on_the_lists_reaches_further_than_arithmetic() -> None:
    """Every function is a plain function of its own module; no module, class or private name is on a list."""
    dangerous = {
        "load",
        "save",
        "open",
        "exec",
        "eval",
        "compile",
        "system",
        "import",
        "file",
        "hook",
        "apply",
        "storage",
        "ptr",
        "numpy",
    }
    for function in allowed.FUNCTIONS.values():
        assert callable(function)
        assert not isinstance(function, type | types.ModuleType)
        assert function is not getattr
    for name in [each.rsplit(".", 1)[1] for each in allowed.FUNCTIONS] + sorted(allowed.METHODS | allowed.ATTRIBUTES):
        assert not name.startswith("_")
        assert not dangerous & set(name.split("_"))
    for name, layer in allowed.LAYERS.items():
        assert getattr(nn, name) is layer
        assert layer.__module__.startswith("torch.nn.modules.")
        assert issubclass(layer, nn.Module)


def test_the_lists_have_no_name_that_this_torch_lacks() -> None:
    """A misspelt name would silently never match."""
    assert {name for name in (allowed._BOTH + allowed._TENSOR).split() if not hasattr(Tensor, name)} == set()
    for module, (owner, names) in allowed._MODULES.items():
        missing = {name for name in names.split() if not hasattr(owner, name)}
        assert not missing - {"T"}, module
    assert {name for name in allowed._LAYERS.split() if not hasattr(nn, name)} == set()
