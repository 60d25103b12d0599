"""Missing extras are named."""

from __future__ import annotations

import pytest

from fewbit.errors import FewbitError, MissingExtraError, failing, require, told


def test_what_is_there_is_imported():
    assert require("json", "llm").__name__ == "json"


def test_a_missing_package_names_the_extra():
    with pytest.raises(MissingExtraError, match=r"pip install 'fewbit\[report\]'") as error:
        require("surely_not_installed.sub", "report")
    assert isinstance(error.value, FewbitError)


def test_a_broken_package_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import surely_not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed") as error:
        require("broken_package", "llm")
    assert not isinstance(error.value, MissingExtraError)


def test_all_lines_of_an_error_are_told_unless_they_are_long():
    assert told(ValueError("field 'size':\n    expected int,\n  got str.")) == "field 'size': expected int, got str"
    assert told(KeyError("magic")) == "KeyError 'magic'"
    assert told(RuntimeError()) == "RuntimeError"
    assert len(told(ValueError("x" * 1000))) == 300


@pytest.mark.parametrize("error", [RuntimeError("boom\nhere"), KeyError("boom"), AssertionError("boom")])
def test_a_failing_model_is_told_as_one_sentence(error):
    with pytest.raises(FewbitError, match=r"block 3 failed: .*boom.*; mend it"), failing("block 3 failed", "mend it"):
        raise error


def test_what_is_told_already_and_what_no_model_raises_pass():
    for error in (FewbitError("as it is"), KeyboardInterrupt(), StopIteration()):
        with pytest.raises(type(error)) as caught, failing("block 3 failed", "mend it"):
            raise error
        assert caught.value is error


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_no_fault_of_the_model(error):
    with pytest.raises(FewbitError, match="fewer or shorter windows"), failing("block 3 failed", "mend it"):
        raise error
