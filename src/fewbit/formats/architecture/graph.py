"""Models that torch.fx can trace: the module tree and the graph of calls between its layers.

The model is traced in evaluation mode with fewbit's layers and those of torch.nn as leaves. Every node is
saved as ``[op, target, args, kwargs]``, nodes refer to each other by index, and functions, methods and
attributes are those of `allowed`. torch.fx turns a graph into Python source and runs it, so nothing from a
file reaches it that is not either an object out of a table here or a name matched against a pattern.

Arguments of ``forward`` that have a default are fixed at it: a trace follows one path through the code, and
for an optional argument that is the one where it is not given.
"""

from __future__ import annotations

import contextlib
import inspect
import keyword
from collections.abc import Callable, Iterator
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from fewbit.formats.architecture import layers, tree
from fewbit.formats.architecture.allowed import ATTRIBUTES, FUNCTION_NAMES, FUNCTIONS, METHODS
from fewbit.formats.architecture.description import Description, Slot, members_of
from fewbit.formats.architecture.values import Json, Undescribable, decode, encode
from fewbit.nn import QuantizedWeight
from fewbit.nn.preserved import preserved_state

_GETATTR = "builtins.getattr"
_NODE: dict[str, type | tuple[type, ...]] = {"op": str, "target": str, "args": list, "kwargs": dict}


class _Tracer(fx.Tracer):
    """Traces a model without leaving anything on it; tensors made on the way are collected in ``made``."""

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)
        self.made: dict[str, Tensor] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return layers.is_layer(m)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Let buffers be proxies as parameters are, so that nothing is computed from their values here."""
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            for path, tensor in self.root.named_buffers():
                if tensor is attr_val:
                    if path not in parameter_proxy_cache:
                        parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
                    return parameter_proxy_cache[path]
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: Any = None,
    ) -> tuple[Callable[..., Any], list[Any]]:
        args: list[Any] = [self.root]
        for name, parameter in list(inspect.signature(root_fn).parameters.items())[1:]:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is parameter.empty:
                if parameter.kind is parameter.KEYWORD_ONLY:
                    raise Undescribable(f"the argument {name}, which can be given by keyword only")
                args.append(self.create_proxy("placeholder", name, (), {}))
        return root_fn, args

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, QuantizedWeight):
            return self.create_node("get_attr", self.path_of_module(a), (), {})
        if type(a) is not Tensor or any(a is tensor for _, tensor in self.root.named_buffers()):
            return super().create_arg(a)
        path = next((path for path, tensor in self.made.items() if tensor is a), "")
        if not path:
            path = _free_name(self.root, f"constant_{len(self.made)}")
            self.made[path] = a
        return self.create_node("get_attr", path, (), {})


def describe(model: nn.Module) -> Description:
    """Describe a model that torch.fx can trace.

    Raises:
        Undescribable: It cannot be traced, or calls something a saved model may not.
    """
    graph, made = _trace(model)
    slots, constants = tree.own_tensors(model)
    constants |= made
    slots |= {path: Slot.of(tensor, "constant") for path, tensor in made.items()}
    index = {node: number for number, node in enumerate(graph.nodes)}
    nodes: list[Json] = [_describe_node(node, index) for node in graph.nodes]
    name = type(model).__name__
    return Description("graph", name, {"nodes": nodes}, tree.describe_modules(model), slots, constants=constants)


def _trace(model: nn.Module) -> tuple[fx.Graph, dict[str, Tensor]]:
    if tree.is_altered(model):
        raise Undescribable("a forward or a hook set on the model itself, outside its class")
    training = [module for module in model.modules() if module.training]
    tracer = _Tracer()
    try:
        model.eval()
        with torch.no_grad(), preserved_state(model), _no_questions(model):
            graph = tracer.trace(model)
    except Undescribable:
        raise
    except Exception as error:  # tracing runs the model's own code, which may fail in any way
        raise Undescribable(f"a forward that torch.fx cannot trace ({type(error).__name__})") from error
    finally:
        for module in training:
            module.training = True
    return graph, tracer.made


@contextlib.contextmanager
def _no_questions(model: nn.Module) -> Iterator[None]:
    """Refuse a forward that asks ``isinstance`` of its tensors: a proxy is none, and the wrong path would be traced.

    The question is only let pass, with the answer no, for an input and a list, tuple, dict or str.
    """

    def ask(value: Any, kinds: Any) -> bool:
        if isinstance(value, fx.Proxy):
            asked = set(kinds if isinstance(kinds, tuple) else get_args(kinds) or (kinds,))
            if value.node.op != "placeholder" or not asked <= {list, tuple, dict, str}:
                raise Undescribable("a forward that asks whether a value is of a type")
        return isinstance(value, kinds)

    functions = (getattr(inspect.unwrap(type(module).forward), "__globals__", {}) for module in model.modules())
    spaces = {id(space): space for space in functions if not space.get("__name__", "torch").startswith("torch.")}
    is_tensor = torch.is_tensor
    before = [(space, space.get("isinstance")) for space in spaces.values()]
    try:
        for space in spaces.values():
            space["isinstance"] = ask
        torch.is_tensor = lambda obj: ask(obj, Tensor)  # type: ignore[assignment]
        yield
    finally:
        torch.is_tensor = is_tensor
        for space, own in before:
            if own is None:
                del space["isinstance"]
            else:
                space["isinstance"] = own


def _free_name(model: nn.Module, name: str) -> str:
    while hasattr(model, name):
        name += "_"
    return name


def _describe_node(node: fx.Node, index: dict[fx.Node, int]) -> Json:
    target = node.target
    if node.op == "call_function":
        if target is getattr:
            if not _is_getattr(node.args, node.kwargs):
                raise Undescribable(f"the tensor attribute {str(node.args[-1])[:80]}")
            name = _GETATTR
        else:
            name = FUNCTION_NAMES.get(target, "")  # type: ignore[arg-type]
            if not name:
                raise Undescribable(f"a call of {_qualified_name(target)}")
    else:
        name = str(target)
        if node.op == "call_method" and name not in METHODS:
            raise Undescribable(f"a call of the tensor method {name[:80]}")

    def to_json(value: Any) -> Json:
        return encode(value, lambda each: index.get(each) if isinstance(each, fx.Node) else None)

    args = [to_json(each) for each in node.args]
    kwargs = {key: to_json(each) for key, each in node.kwargs.items()}
    return {"op": node.op, "target": name, "args": args, "kwargs": kwargs}


def _qualified_name(function: Any) -> str:
    module = getattr(function, "__module__", None) or "builtins"
    return f"{module}.{getattr(function, '__qualname__', type(function).__name__)}"


def _is_getattr(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if len(args) != 2 or kwargs or not isinstance(args[0], fx.Node):
        return False
    return isinstance(args[1], str) and args[1] in ATTRIBUTES


def build(description: Description) -> fx.GraphModule:
    """Build the skeleton of a traced model; its tensors hold nothing yet.

    Raises:
        ValueError: The description is not one that `describe` can have written.
    """
    if not _is_name(description.class_name):
        raise ValueError(f"the class name {description.class_name[:40]!r}")
    root = tree.build_tree(description)
    if layers.is_layer(root):
        raise ValueError("a graph whose top module is a layer")
    graph = _build_graph(members_of(description.details, {"nodes": list})["nodes"], root)
    model = fx.GraphModule(root, graph, class_name=description.class_name)
    # GraphModule copies only what the graph uses, with plain modules as containers: take the tree itself.
    for table in (model._modules, model._parameters, model._buffers):
        table.clear()
    for name, child in root._modules.items():
        model.add_module(name, child)
    for path, slot in description.tensors.items():
        if "." not in path:
            tree.add_own_tensor(model, path, slot)
    return model.eval()


def _build_graph(records: list[Json], root: nn.Module) -> fx.Graph:
    graph = fx.Graph()
    nodes: list[fx.Node] = []
    modules = dict(root.named_modules(remove_duplicate=False))
    tensors = {path for path, each in modules.items() if isinstance(each, QuantizedWeight)}
    tensors |= {path for path, _ in root.named_parameters(remove_duplicate=False)}
    tensors |= {path for path, _ in root.named_buffers(remove_duplicate=False)}
    for number, record in enumerate(records):
        members = members_of(record, _NODE)
        op, target = members["op"], members["target"]
        args = tuple(decode(each, nodes) for each in members["args"])
        kwargs = {key: decode(each, nodes) for key, each in members["kwargs"].items()}
        if not all(_is_name(key) for key in kwargs):
            raise ValueError("an argument whose name is not a word")
        if (op == "output") != (number == len(records) - 1):
            raise ValueError("a graph that does not end with its output")
        if op == "placeholder":
            _check_placeholder(target, args, kwargs, nodes)
        else:
            _check_call(op, target, args, modules.keys() - {""}, tensors)
        function: Any = target
        if op == "call_function":
            if target == _GETATTR and not _is_getattr(args, kwargs):
                raise ValueError("a tensor attribute that a saved model may not read")
            function = getattr if target == _GETATTR else FUNCTIONS[target]
        nodes.append(graph.create_node(op, function, args, kwargs))
    if not nodes:
        raise ValueError("a graph without nodes")
    graph.lint()
    return graph


def _is_name(name: str) -> bool:
    plain = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    return plain and not name.startswith("__")


def _check_placeholder(target: str, args: tuple[Any, ...], kwargs: dict[str, Any], nodes: list[fx.Node]) -> None:
    taken = {node.target for node in nodes}
    if not _is_name(target) or target in (*taken, "self", "torch") or args or kwargs:
        raise ValueError(f"the input {target[:40]!r}")
    if any(node.op != "placeholder" for node in nodes):
        raise ValueError("an input after the first call")


def _check_call(op: str, target: str, args: tuple[Any, ...], modules: set[str], tensors: set[str]) -> None:
    if op == "call_function" and (target in FUNCTIONS or target == _GETATTR):
        return
    if op == "call_method" and target in METHODS and args and isinstance(args[0], fx.Node):
        return
    if op == "call_module" and target in modules:
        return
    if op == "get_attr" and target in tensors and not args:
        return
    if op == "output" and target == "output" and len(args) == 1:
        return
    raise ValueError(f"the call {op[:20]} {target[:80]!r}, which a saved model may not make")
