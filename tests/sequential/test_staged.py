"""One pass in which windows wait, and passes from the start for every group, give the same model."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import inputs, tiny_folder

from fewbit.recipe import as_recipe
from fewbit.sequential import staged
from fewbit.sequential.folder import FolderJob, quantize_folder
from fewbit.sequential.gates import Gate
from fewbit.sequential.solve import Settings
from fewbit.sequential.windows import windows


def quantized(source: Path, output: Path, family: str, rows: int, scheme: str = "W4A16-g16", **changes: Any) -> Any:
    """The files of a model quantized with GPTQ."""
    data = windows([inputs(family, rows)])
    quantize_folder(FolderJob(source, output, Settings(as_recipe(scheme), "gptq"), data, **changes))
    return {path.name: path.read_bytes() for path in sorted(output.iterdir()) if path.is_file()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_memory_changes_no_bit(tmp_path: Path, family: str) -> None:
    source = tiny_folder(tmp_path / "model", family)
    made = [quantized(source, tmp_path / str(memory), family, 5, memory=memory) for memory in (2**30, 100)]
    assert made[0] == made[1]


@pytest.mark.parametrize(("scheme", "differs"), [("W4A16-g16", True), ("W3A16-g16", False)])
def test_from_4_bits_a_layer_sees_what_the_quantized_ones_before_it_put_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, differs: bool
) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    ordered = quantized(source, tmp_path / "ordered", "llama", 4, scheme)
    monkeypatch.setattr("fewbit.sequential.blocks.in_order", lambda *_: False)
    assert (quantized(source, tmp_path / "at-once", "llama", 4, scheme) != ordered) == differs


@pytest.mark.parametrize("memory", [2**30, 100])
def test_nothing_of_a_block_waits_for_the_collector(tmp_path: Path, memory: int) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    gc.collect()
    gc.disable()
    try:
        quantized(source, tmp_path / "out", "llama", 4, memory=memory)
        assert not [each for each in gc.get_objects() if type(each) is Gate]
    finally:
        gc.enable()


def test_threads_change_no_bit(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "gemma3_text")
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(quantized(source, tmp_path / str(threads), "gemma3_text", 9))
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1] == made[2]


def test_the_length_of_a_window() -> None:
    assert staged._length({"input_ids": torch.zeros(1, 7), "use_cache": False}) == 7
    assert staged._length({}) == 1
