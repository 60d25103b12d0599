"""One of the two processes of test_distributed.py: ``python two_processes.py RANK FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from samples import net, pictures
from torch.nn.parallel import DistributedDataParallel

import fewbit


def main(rank: int, folder: Path) -> None:
    """Each process sees other data, and without calibration data each would start from other ranges."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    prepared = fewbit.prepare_qat(net(), "W4A4", estimator="lsq_plus", freeze_norms_after=2, freeze_ranges_after=2)
    parallel = DistributedDataParallel(prepared)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    for step in range(4):
        x, y = pictures(8, seed=2 * step + rank)
        loss = F.cross_entropy(parallel(x * (1 + rank)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({name: value.detach() for name, value in prepared.named_parameters()}, folder / f"{rank}.pt")
    torch.save(fewbit.convert(parallel).head.weight_qtensor().codes, folder / f"codes{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
