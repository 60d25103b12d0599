"""``fewbit quantize FOLDER``: a Hugging Face folder, streamed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.cli.options import DataOptions, parse_bytes
from fewbit.cli.session import Session, refuse_options
from fewbit.errors import FewbitError

if TYPE_CHECKING:
    from fewbit.cli.quantize import Job
    from fewbit.sequential.windows import Window


def streams(job: Job, options: DataOptions) -> bool:
    """Whether a job goes from folder to folder: a Hugging Face folder, unless its model has to be in memory as a whole.

    That is so for batch norm, which is folded, for data on a model without blocks, and for algorithms that prepare the
    float model (``rotation``, ``awq``, ``smoothquant``, which a ``-dynamic`` scheme with data gets by itself).
    """
    folder = Path(job.source)
    if job.format != "native" or not (folder / "config.json").is_file() or (folder / "fewbit.json").exists():
        return False
    # Before the first product: the same bits on any number of threads (Intel MKL's conditional reproducibility).
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    from torch import nn

    from fewbit.models import layout
    from fewbit.nn.prepare import split_name
    from fewbit.recipe import as_recipe
    from fewbit.sequential.automatic import resolve, scalable, tunes
    from fewbit.sequential.skeleton import skeleton
    from fewbit.sequential.solve import with_calibrator

    model, has_data = skeleton(folder), options.path is not None
    recipe, scales = with_calibrator(as_recipe(job.recipe), job.calibrator), scalable(model, streamed=True)
    named = resolve(job.algorithm, recipe, bool(layout(model).blocks), has_data, scales and "RANK" not in os.environ)
    if split_name(named)[0] or job.bias_correction == "analytic":
        return False  # these steps change the float model as a whole
    if has_data and tunes(job.algorithm, model) and "RANK" not in os.environ:
        return False  # the quantized model is tuned as a whole
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return False
    return not has_data or bool(layout(model).blocks)


def run_folder(session: Session, job: Job, options: DataOptions) -> None:
    """Quantize a folder, and tell what was done.

    Raises:
        FewbitError: Something the user named cannot be used.
    """
    from fewbit.cli.quantize import document_of, shown
    from fewbit.models import layout
    from fewbit.nn import attach_info
    from fewbit.recipe import as_recipe
    from fewbit.sequential.automatic import resolve
    from fewbit.sequential.folder import FolderJob, quantize_folder
    from fewbit.sequential.ranks import torchrun
    from fewbit.sequential.skeleton import skeleton
    from fewbit.sequential.solve import Settings, with_calibrator

    refuse_options(
        {"--batch-size": options.batch_size is not None}, "for a folder that is streamed, where each window is a batch"
    )
    recipe = with_calibrator(as_recipe(job.recipe), job.calibrator)
    windows, told = calibration_windows(Path(job.source), options)
    algorithm = resolve(job.algorithm, recipe, bool(layout(skeleton(Path(job.source))).blocks), windows is not None)
    folder = FolderJob(
        Path(job.source),
        job.output,
        Settings(recipe, algorithm, job.bias_correction != "none"),
        windows,
        job.streaming.dtype,
        parse_bytes(job.streaming.memory),
        job.overwrite,
        job.streaming.restart,
    )
    with torchrun() as ranks:
        result = quantize_folder(folder, session.progress if ranks.first else None, ranks)
        if not ranks.first:
            return
    attach_info(result.quantized, result.info)
    document = document_of(job, result.original, result.quantized)
    document["data"] = told
    document["notes"] = [*([f"calibrated on {told}"] if told and result.calibrated else []), *document["notes"]]
    session.result(document, *shown(document))


def calibration_windows(folder: Path, options: DataOptions) -> tuple[list[Window] | None, str | None]:
    """The calibration windows, and what they are.

    Raises:
        FewbitError: The data or the tokenizer cannot be read.
    """
    if options.path is None:
        return None, None
    from fewbit.sequential.skeleton import skeleton
    from fewbit.sequential.windows import windows
    from fewbit.sources import load_data
    from fewbit.sources.huggingface import tokenizer_folder

    model: Any = skeleton(folder)
    path, options = options.path, options.of_language()
    batches = load_data(
        path,
        model,
        batch_size=1,
        limit=options.samples,
        tokenizer_dir=options.tokenizer or tokenizer_folder(folder),
        image=options.image(),
        text_options=options.text(),
    )
    found = windows(batches, getattr(model, "main_input_name", "input_ids"))
    if not found:
        raise FewbitError(f"{options.path} holds no data")
    return found, batches.describe
