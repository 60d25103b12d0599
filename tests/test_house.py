"""The rules of the house that no tool checks: names, sizes, documentation, a test for everything."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

import fewbit
from fewbit.numbers.formats import all_formats

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "fewbit"
MODULES = sorted(SOURCE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef

# Modules without a test file of their own name, and where they are tested instead.
TESTED_ELSEWHERE = {
    "onnxgraph/targets": "tests/onnxgraph/test_placement.py and test_static.py, target by target",
    "onnxpipeline/dynamic_job": "tests/onnxpipeline/test_quantize.py, scheme by scheme",
    "onnxpipeline/result": "tests/onnxpipeline/test_quantize.py",
    "onnxpipeline/static_job": "tests/onnxpipeline/test_quantize.py, target by target",
    "onnxpipeline/weights_job": "tests/onnxpipeline/test_quantize.py, scheme by scheme",
    "__main__": "test_the_command_answers_with_its_version, below",
    "numbers/format": "the protocol; tests/numbers/test_formats.py holds every format to it",
    "cli/language": "the arguments of tests/cli/test_evaluate.py and test_generate.py",
    "bench/peers/bitsandbytes": "tests/bench/test_peers.py",
    "bench/peers/onnxruntime": "tests/bench/test_peers.py",
    "bench/peers/openvino": "tests/bench/test_peers.py",
    "bench/peers/torch": "tests/bench/test_peers.py",
    "bench/peers/torchao": "tests/bench/test_peers.py",
    "demo/cnn": "measured from end to end in tests/demo/test_run.py, on the network of test_efficientnet.py",
    "demo/text": "measured from end to end in tests/demo/test_run.py, on the encoder of test_minilm.py",
    "models/table": "the words of the tables, which tests/models/test_layout.py holds to models",
    "integer/refine": "tests/integer/test_finish.py, from quantize() on",
    "engines/litert": "tests/integer/test_tflite.py",
    "engines/onnxruntime": "tests/engines/test_deployed.py runs every engine that is installed",
    "engines/openvino": "tests/engines/test_deployed.py",
    "engines/reference": "tests/engines/test_deployed.py",
    "engines/torch": "tests/engines/test_deployed.py",
    "sequential/assemble": "tests/sequential/test_folder.py, end to end",
    "sequential/blocks": "tests/sequential/test_memory.py and test_folder.py, which run all of it",
    "sequential/calibration": "tests/sequential/test_memory.py, test_folder.py and test_ranks.py",
    "sequential/datafree": "tests/sequential/test_folder.py, against the model quantized in memory",
    "sequential/streamed": "tests/sequential/test_folder.py, end to end",
    "sequential/work": "what the sequential pipeline carries along; tests/sequential/test_memory.py",
    "sources/batches": "tests/sources/test_data.py",
    "sources/huggingface": "tests/sources/test_model.py",
    "sources/preparation": "tests/sources/test_images.py",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


def tracked() -> list[Path]:
    """Every text file that a commit would hold."""
    folders = [ROOT / name for name in ("src", "tests", "benchmarks", "examples", "csrc", "docs", ".ci")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += [path for path in ROOT.glob("*") if path.suffix in (".md", ".toml", ".yml") or path.name == "Makefile"]
    binary = (".so", ".pyd", ".png", ".gz", ".npz", ".safetensors")
    return [path for path in files if "__pycache__" not in path.parts and path.suffix not in binary]


def public_definitions(tree: ast.Module) -> Iterator[Definition]:
    """Public functions and classes of a module, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Function) and not inner.name.startswith("_"):
                        yield inner


# --- the public surface -------------------------------------------------------------------------


def test_at_most_14_public_names_and_each_is_there() -> None:
    assert 0 < len(fewbit.__all__) <= 14
    assert len(set(fewbit.__all__)) == len(fewbit.__all__)
    for name in fewbit.__all__:
        assert getattr(fewbit, name) is not None
    assert {"quantize", "quantize_tensor", "compare", "save", "load", "Recipe"} <= set(fewbit.__all__)


def test_public_names_are_documented() -> None:
    for name in fewbit.__all__:
        value = getattr(fewbit, name)
        if callable(value):
            assert value.__doc__, name


def test_the_command_answers_with_its_version() -> None:
    done = run("-m", "fewbit", "--version")
    assert done.returncode == 0, done.stderr
    assert metadata.version("fewbit") in done.stdout


def test_importing_fewbit_pulls_in_no_extra() -> None:
    heavy = ["transformers", "onnx", "onnxruntime", "plotly", "PIL", "gensim", "foolbox", "tokenizers"]
    code = f"import fewbit, sys; print([name for name in {heavy} if name in sys.modules])"
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_module_imports(path: Path) -> None:
    name = ".".join(("fewbit", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
    if name != "fewbit.__main__":
        importlib.import_module(name)


# --- every file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_is_short_typed_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") < 400
    tree = ast.parse(text)
    if tree.body:
        assert ast.get_docstring(tree), "a module says what it is for"
    for node in public_definitions(tree):
        assert ast.get_docstring(node), f"{node.name} has no docstring"
        if not isinstance(node, ast.ClassDef):
            assert node.returns is not None, f"{node.name} has no return type"
            assert (node.end_lineno or 0) - node.lineno < 60, f"{node.name} does not fit a screen"


def mirrored() -> Iterator[tuple[str, Path]]:
    for path in MODULES:
        name = path.relative_to(SOURCE).with_suffix("")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        code = [node for node in tree.body if isinstance(node, Definition)]
        if code and name.name != "__init__":  # what a package itself holds is tested with its modules
            yield str(name), ROOT / "tests" / name.parent / f"test_{name.name}.py"


def test_every_module_has_its_test_file() -> None:
    wanted = [test for module, test in mirrored() if module not in TESTED_ELSEWHERE]
    missing = [str(test.relative_to(ROOT)) for test in wanted if not test.exists()]
    assert not missing, "write these, or say in TESTED_ELSEWHERE where the module is tested"


def test_the_list_of_exceptions_names_modules_that_exist() -> None:
    for module in TESTED_ELSEWHERE:
        assert (SOURCE / f"{module}.py").exists()
        own = ROOT / "tests" / Path(module).parent / f"test_{Path(module).name}.py"
        assert not own.exists(), f"{module} has one now"


def test_nothing_unpickles_and_nothing_names_this_machine() -> None:
    # In two pieces each, so that this file does not hold them.
    forbidden = [
        "weights_only=" + "False",
        "pickle." + "load",
        "/wo" + "rk/",
        "/tm" + "p/",
        "TO" + "DO:",
        "FIX" + "ME",
    ]
    for path in tracked():
        text = path.read_text(encoding="utf-8")
        for word in forbidden:
            assert word not in text, f"{path.relative_to(ROOT)} holds {word}"


def test_torch_load_is_always_told_to_load_weights_alone() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"{path.relative_to(ROOT)}:{node.lineno}"


def test_imports_only_go_down() -> None:
    pytest.importorskip("importlinter")
    done = run("-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_formats_have_one_name_each() -> None:
    names = [fmt.name for fmt in all_formats()]
    assert len(set(names)) == len(names)


def test_the_changelog_knows_the_version() -> None:
    assert f"## {metadata.version('fewbit')}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
