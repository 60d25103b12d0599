"""Two processes under DistributedDataParallel train one model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.skipif(os.name == "nt" or not torch.distributed.is_available(), reason="needs gloo")
def test_both_processes_hold_the_same_parameters_and_codes(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, str(SCRIPT), str(rank), str(tmp_path)]) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=240) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert any(name.endswith("offset") for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    codes = [torch.load(tmp_path / f"codes{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(*codes)
