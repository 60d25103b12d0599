"""From a Hugging Face folder to a quantized one, part by part: ``fewbit quantize FOLDER`` and ``torchrun``.

Everything is written into ``OUT.partial`` beside the output, with a journal; when all parts are there, its ``files``
become OUT in one rename. A run that was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewbit import __version__, atomic
from fewbit.calibrate.collect import Progress
from fewbit.errors import DiskFull, FewbitError
from fewbit.formats import native
from fewbit.models import layout
from fewbit.models.layout import Layout
from fewbit.nn import QuantizationInfo, kinds
from fewbit.nn.experts import split_experts
from fewbit.nn.plan import check_plans, join_tied
from fewbit.recipe import LayerPlan, Recipe
from fewbit.sequential import datafree
from fewbit.sequential.assemble import assemble
from fewbit.sequential.blocks import is_static, run_stacks, run_tail
from fewbit.sequential.checkpoint import Checkpoint
from fewbit.sequential.journal import Journal
from fewbit.sequential.lock import RunLock
from fewbit.sequential.memory import data_free, outside
from fewbit.sequential.names import origins, split_origins
from fewbit.sequential.packing import swap_tied
from fewbit.sequential.ranks import Ranks
from fewbit.sequential.skeleton import float_dtype, skeleton
from fewbit.sequential.solve import Settings
from fewbit.sequential.streamed import OUTSIDE, Streamed
from fewbit.sequential.windows import Window
from fewbit.sequential.work import Work

#: What hidden states and sums may take in memory by default.
MEMORY = 8 * 2**30


@dataclass(frozen=True)
class FolderJob:
    """What is to be done.

    Attributes:
        source: The Hugging Face folder.
        output: The folder to appear.
        settings: How layers are quantized.
        windows: Calibration data, None for none.
        dtype: The type of what stays float, by name; None for the checkpoint's.
        memory: Bytes for hidden states and for statistics; what exceeds them goes to disk.
        overwrite: Whether an earlier output is replaced.
        restart: Whether an interrupted run is thrown away.
        told: Further arguments that a resumed run must agree in.
    """

    source: Path
    output: Path
    settings: Settings
    windows: Sequence[Window] | None = None
    dtype: str | None = None
    memory: int = MEMORY
    overwrite: bool = False
    restart: bool = False
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FolderResult:
    """What was done.

    Attributes:
        output: The folder.
        original: The float model, empty.
        quantized: The quantized model, empty.
        info: How it was made, with notes for the user.
        calibrated: Whether data was used.
    """

    output: Path
    original: nn.Module
    quantized: nn.Module
    info: QuantizationInfo
    calibrated: bool = False


def quantize_folder(job: FolderJob, progress: Progress | None = None, ranks: Ranks | None = None) -> FolderResult:
    """Quantize a checkpoint.

    Args:
        job: What is to be done.
        progress: Called with (stage, steps done, steps in all).
        ranks: The processes of the run.

    Raises:
        FewbitError: The folder or the recipe cannot be used, or an interrupted run with other arguments is in the way.
    """
    ranks = Ranks.current() if ranks is None else ranks
    model, checkpoint = skeleton(job.source), Checkpoint(job.source)
    found, unused = origins(model, checkpoint.entries)
    found = split_origins(model, found)
    split_experts(model)
    plans, notes = _plans(model, job.settings.recipe)
    run, where = Run(job, ranks), layout(model)
    store = Streamed(
        model,
        checkpoint,
        found,
        [block.name for block in where.blocks],
        run.journal,
        run.files,
        float_dtype(job.source, job.dtype),
        ranks,
    )
    notes += [_unused_note(unused)] if unused else []
    with_data = job.windows is not None and _has_bias(model, plans)  # by which it can be corrected
    with_data = with_data or job.settings.needs_data or _static(plans)
    if job.windows is not None and not with_data:
        notes.append(
            f"the data was not used: {job.settings.algorithm} rounds weights without it, activations have no fixed "
            "ranges, and no quantized layer has a bias to correct"
        )
    with run.opened(checkpoint):
        if with_data:
            notes += _calibrated(job, store, where, plans, run, progress)
        else:
            _data_free(job, store, plans, progress)
        ranks.barrier()
        run.journal.read()
        result = assemble(job.source, run.files, store, plans, job.settings, notes)
        if ranks.first:
            run.close()
        ranks.barrier()
    return replace(result, output=job.output, calibrated=with_data)


class Run:
    """The folder of a run: ``OUT.partial`` with the journal, what is in progress, and the ``files`` that become OUT."""

    def __init__(self, job: FolderJob, ranks: Ranks) -> None:
        self.job, self.ranks = job, ranks
        target = Path(os.path.realpath(job.output))
        self.target, self.folder = target, target.with_name(f"{target.name}.partial")
        self.files, self.work = self.folder / "files", self.folder / "work"
        self.journal = Journal(self.folder, ranks.rank)
        self.lock = RunLock(self.folder, job.output)

    @contextlib.contextmanager
    def opened(self, checkpoint: Checkpoint) -> Iterator[None]:
        """A context with the folder, new or of the run that is taken up, to itself.

        Raises:
            FewbitError: It holds a run with other arguments, or one that is under way.
        """
        error: Exception | None = None
        try:
            if self.ranks.first:
                try:
                    self._open(checkpoint)
                except (FewbitError, OSError) as caught:
                    error = caught
            self.ranks.agree(error)
            if not self.files.is_dir():
                raise FewbitError(
                    f"{self.folder} is not seen by every process; choose an output on a disk that all share"
                )
            self.journal.read()
            yield
        except (DiskFull, OSError) as caught:
            if not isinstance(caught, DiskFull) and not atomic.is_full(caught):
                raise
            told = caught if isinstance(caught, DiskFull) else atomic.full(caught, self.folder)
            raise DiskFull(f"{told}; make room, then the same command goes on where this run was") from caught
        finally:
            self.lock.release()

    def close(self) -> None:
        """Let the files become the output."""
        aside = self.folder / "replaced"
        if self.target.exists():
            os.replace(self.target, aside)
        os.replace(self.files, self.target)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _open(self, checkpoint: Checkpoint) -> None:
        self.lock.take()
        if self.job.restart:
            self.lock.clear()
        if killed_at_the_end(self.target):
            self.journal.start(self._arguments(checkpoint))
            os.replace(self.target, self.files)
        native.check_target(self.target, self.job.overwrite)
        self.files.mkdir(parents=True, exist_ok=True)
        for part in (*self.files.glob(".*.partial"), *self.work.rglob(".*.partial")):
            part.unlink()  # what a killed process had begun
        self.journal.start(self._arguments(checkpoint))

    def _arguments(self, checkpoint: Checkpoint) -> dict[str, Any]:
        job = self.job
        return {
            "fewbit": __version__,
            "torch": torch.__version__,
            "recipe": job.settings.recipe.to_dict(),
            "algorithm": job.settings.algorithm,
            "bias correction": job.settings.bias_correction,
            "forward passes": job.settings.forward if job.windows is not None else None,
            "dtype": job.dtype,
            "data": None if job.windows is None else _digest(job.windows),
            "source": {"folder": str(job.source.resolve()), **checkpoint.fingerprint(), **_small_files(job.source)},
            **job.told,
        }


def killed_at_the_end(output: Path) -> bool:
    """Whether a run was killed after its output was in place and before it had cleaned up."""
    folder = output.with_name(f"{output.name}.partial")
    return (folder / "run.json").is_file() and not (folder / "files").exists() and (output / "fewbit.json").is_file()


def _plans(model: nn.Module, recipe: Recipe) -> tuple[list[LayerPlan], list[str]]:
    plans, notes = join_tied(model, recipe.plan((name, kind) for name, _, kind in kinds.quantizable(model)))
    check_plans(plans)
    return plans, notes


def _static(plans: Sequence[LayerPlan]) -> bool:
    return any(map(is_static, plans))


def _unused_note(unused: Sequence[str]) -> str:
    if len(unused) == 1:
        return f"the checkpoint's {unused[0]} belongs to no part of the model and was left out"
    return f"the checkpoint's {unused[0]} and {len(unused) - 1} more belong to no part of the model and were left out"


def _has_bias(model: nn.Module, plans: Sequence[LayerPlan]) -> bool:
    """Whether a quantized layer has a bias, which data can correct."""
    layers = (model.get_submodule(plan.name) for plan in plans if plan.scheme is not None)
    return any(isinstance(getattr(layer, "bias", None), Tensor) for layer in layers)


def _calibrated(
    job: FolderJob, store: Streamed, where: Layout, plans: list[LayerPlan], run: Run, progress: Progress | None
) -> list[str]:
    """Quantize all parts; notes on the whole run."""
    if job.windows is None:
        raise FewbitError(
            f"algorithm {job.settings.algorithm} with recipe {job.settings.recipe.scheme} needs calibration data: "
            "name a text file or a folder with --data"
        )
    model = store.model
    before, behind = outside(model, where, plans)
    late = {f"{plan.name}.weight" for plan in behind}
    store.fill(name for name in store.names(OUTSIDE) if store.canonical.get(name, name) not in late)
    loose = data_free(job.settings)
    for tied in before:
        swap_tied(model, tied, loose)
    work = Work(
        store,
        job.windows,
        job.settings,
        plans,
        where.family == "generic",
        store.ranks,
        job.memory,
        run.work,
        progress,
    )
    run_stacks(work, where.stacks)
    if not store.finished(OUTSIDE):
        store.fill(sorted(late), work.compute)
        store.release(OUTSIDE, run_tail(work, behind, [plan for tied in before for plan in tied]))
    return work.whole


def _data_free(job: FolderJob, store: Streamed, plans: list[LayerPlan], progress: Progress | None) -> None:
    """Part after part; each is written while the next one is quantized."""
    ranks = store.ranks
    total = len(store.parts)
    with ThreadPoolExecutor(1) as pool:
        written: Future[None] | None = None
        for number, part in enumerate(store.parts):
            if number % ranks.size == ranks.rank and not store.finished(part):
                datafree.quantize_part(store, part, plans, job.settings)
                if written is not None:
                    written.result()
                written = pool.submit(store.save, store.collect(part, []))
                store.unload(part)
            if progress is not None:
                progress("quantize", number + 1, total)
        if written is not None:
            written.result()


def _digest(windows: Sequence[Window]) -> str:
    """What tells two sets of calibration windows apart."""
    digest = hashlib.sha256()
    for window in windows:
        for name in sorted(window):
            value = window[name]
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(str((value.dtype, tuple(value.shape))).encode())
                value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digest.update(value if isinstance(value, bytes) else repr(value).encode())
    return f"{len(windows)} windows, sha256 {digest.hexdigest()[:16]}"


def _small_files(folder: Path) -> dict[str, str]:
    """Digests of the files that go along."""
    found = (folder / name for name in sorted(native.COMPANIONS))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in found if path.is_file()}
