"""Two processes exchange tensors; one alone needs nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_models import inputs, tiny

from fewbit.errors import FewbitError
from fewbit.recipe import as_recipe
from fewbit.sequential.folder import FolderJob, quantize_folder
from fewbit.sequential.ranks import Ranks, torchrun
from fewbit.sequential.solve import Settings
from fewbit.sequential.windows import windows


def test_alone_everything_is_its_own() -> None:
    with torchrun() as ranks:
        assert ranks == Ranks(0, 1)
        assert ranks.tell({"a": 1}) == {"a": 1}
        tensors = {"x": torch.ones(2)}
        assert ranks.share(tensors, 0) is tensors
        ranks.barrier()
        ranks.agree(None)
        with pytest.raises(FewbitError, match="own"):
            ranks.agree(FewbitError("own"))


def _process(rank: int, port: int, folder: str) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    with torchrun() as ranks:
        assert ranks.first == (rank == 0)
        assert ranks.tell(["from", 1] if rank else None, 1) == ["from", 1]
        mine = {
            "h": torch.arange(6).to(torch.bfloat16).reshape(2, 3),
            "none": torch.empty(0, 2),
            "b": torch.tensor(True),
        }
        got = ranks.share(mine if rank == 1 else {}, 1)
        assert got.keys() == mine.keys()
        assert all(torch.equal(got[name], mine[name]) for name in mine)
        if rank == 1:
            ranks.send(mine, 0)
        else:
            assert all(torch.equal(value, mine[name]) for name, value in ranks.receive(1).items())
        try:
            ranks.agree(FewbitError("mine") if rank == 1 else None)
        except FewbitError as error:
            (Path(folder) / str(rank)).write_text(str(error))
        _quantize(Path(folder), "two processes", ranks)
    assert not dist.is_initialized()


def _quantize(folder: Path, name: str, ranks: Ranks) -> None:
    """With data for GPTQ-like sums, and without."""
    for scheme, algorithm, rows in (("W4A16-g16", "awq", 5), ("W8A8-dynamic", "rtn", 0)):
        data = windows([inputs("qwen2_moe", batch=rows)]) if rows else None
        settings = Settings(as_recipe(scheme), algorithm)
        quantize_folder(FolderJob(folder / "model", folder / name / algorithm, settings, data), ranks=ranks)


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    tiny("qwen2_moe").save_pretrained(tmp_path / "model")
    mp.spawn(_process, args=(port, str(tmp_path)), nprocs=2)
    assert (tmp_path / "1").read_text() == "mine"
    assert "process 1 of 2 failed" in (tmp_path / "0").read_text()
    _quantize(tmp_path, "one process", Ranks())
    for algorithm in ("awq", "rtn"):
        one, two = tmp_path / "one process" / algorithm, tmp_path / "two processes" / algorithm
        names = {path.name for path in one.iterdir()}
        assert names == {path.name for path in two.iterdir()}
        assert len(names) > 4
        for name in names:
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
