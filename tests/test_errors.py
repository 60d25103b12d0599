"""Missing extras are named."""

from __future__ import annotations

import pytest

from fewbit.errors import FewbitError, MissingExtraError, require


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
