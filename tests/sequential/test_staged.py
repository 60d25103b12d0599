"""One pass in which windows wait, and passes from the start for every group, give the same model."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import inputs, tiny_folder

from fewbit.errors import FewbitError
from fewbit.recipe import as_recipe
from fewbit.sequential import staged
from fewbit.sequential.calibration import calibrate_and_solve
from fewbit.sequential.folder import FolderJob, quantize_folder
from fewbit.sequential.gates import Gate, Rehearsal
from fewbit.sequential.solve import Settings
from fewbit.sequential.windows import windows


def quantized(source: Path, output: Path, family: str, rows: int, scheme: str = "W4A16-g16", **changes: Any) -> Any:
    """The files of a model quantized with GPTQ."""
    data = windows([inputs(family, rows)])
    quantize_folder(FolderJob(source, output, Settings(as_recipe(scheme), "gptq"), data, **changes))
    return {path.name: path.read_bytes() for path in sorted(output.iterdir()) if path.is_file()}


@pytest.mark.parametrize(
    ("family", "scheme"),
    [("llama", "W4A16-g16"), ("gpt2", "W4A16-g16"), ("mixtral", "W4A16-g16"), ("gpt2", "W3A16-g16")],
)
def test_memory_changes_no_bit(tmp_path: Path, family: str, scheme: str) -> None:
    source = tiny_folder(tmp_path / "model", family)
    made = [quantized(source, tmp_path / str(memory), family, 5, scheme, memory=memory) for memory in (2**30, 100)]
    assert made[0] == made[1]


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral"])
@pytest.mark.parametrize("memory", [2**30, 100])
def test_below_4_bits_what_is_behind_attention_is_calibrated_on_float_layers_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, memory: int
) -> None:
    source = tiny_folder(tmp_path / "model", family)
    made = quantized(source, tmp_path / "made", family, 4, "W3A16-g16", memory=memory)

    def in_two_parts(work: Any, block: Any, groups: Any, forward: Any, done: Any) -> tuple[list[str], bool]:
        behind = [group for group in groups if group[0].name in block.behind_attention]
        notes = []
        for group in groups:
            if group not in behind:
                notes += calibrate_and_solve(work, [group], forward)
        return notes + calibrate_and_solve(work, behind, forward), False

    monkeypatch.setattr("fewbit.sequential.blocks.solve_in_order", in_two_parts)
    assert quantized(source, tmp_path / "parts", family, 4, "W3A16-g16") == made


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W3A16-g16"])
def test_layers_see_what_the_quantized_ones_of_an_earlier_turn_put_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    ordered = quantized(source, tmp_path / "ordered", "llama", 4, scheme)
    monkeypatch.setattr("fewbit.sequential.blocks.in_order", lambda *_: False)
    assert quantized(source, tmp_path / "at-once", "llama", 4, scheme) != ordered


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W3A16-g16"])
@pytest.mark.parametrize("memory", [2**30, 100])
def test_nothing_of_a_block_waits_for_the_collector(tmp_path: Path, memory: int, scheme: str) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    gc.collect()
    gc.disable()
    try:
        quantized(source, tmp_path / "out", "llama", 4, scheme, memory=memory)
        assert not [each for each in gc.get_objects() if type(each) in (Gate, Rehearsal, staged._Stage)]
    finally:
        gc.enable()


@pytest.mark.parametrize("scheme", ["W4A16-g16", "W3A16-g16"])
def test_threads_change_no_bit(tmp_path: Path, scheme: str) -> None:
    source = tiny_folder(tmp_path / "model", "gemma3_text")
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(quantized(source, tmp_path / str(threads), "gemma3_text", 9, scheme))
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1] == made[2]


def test_what_learns_convolutions_does_not_stand_for_another_algorithm_here(tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "model", "llama")
    data = windows([inputs("llama", 2)])
    job = FolderJob(source, tmp_path / "out", Settings(as_recipe("W4A16-g16"), "brecq"), data)
    with pytest.raises(FewbitError, match=r"brecq learns the blocks of networks of convolutions; .* take autoround"):
        quantize_folder(job)


def test_the_length_of_a_window() -> None:
    assert staged._length({"input_ids": torch.zeros(1, 7), "use_cache": False}) == 7
    assert staged._length({}) == 1
