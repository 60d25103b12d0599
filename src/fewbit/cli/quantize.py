"""``fewbit quantize``."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.cli.options import DataOptions, Streaming
from fewbit.cli.session import Session, check_output, check_sources, refuse_options
from fewbit.cli.stored import as_it_was
from fewbit.errors import FewbitError
from fewbit.wording import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fewbit.recipe import Recipe
    from fewbit.sources import Batches


@dataclass(frozen=True)
class Job:
    """What is to be quantized, how, and where it goes."""

    source: str
    output: Path
    recipe: str
    algorithm: str
    calibrator: str | None
    format: str
    bias_correction: str
    overwrite: bool
    streaming: Streaming = field(default_factory=Streaming)


def run_quantize(session: Session, job: Job, options: DataOptions) -> None:
    """Quantize a model, save it, and tell what was done.

    Raises:
        FewbitError: Something the user named cannot be used; nothing is left at the output then.
    """
    check_sources(job.output, job.source, options.path, job.recipe, options.tokenizer)
    if not job.output.with_name(f"{job.output.name}.partial").is_dir():  # else a run may have been killed at its end
        check_output(job.output, folder=True, overwrite=job.overwrite)
    _check_names(job)
    options.check()
    from fewbit.cli.folder import run_folder, streams

    if streams(job, options):
        run_folder(session, job, options)
    else:
        whole = "for a model that is not streamed but quantized in memory as a whole"
        refuse_options(job.streaming.given(), whole)
        check_output(job.output, folder=True, overwrite=job.overwrite)
        _run_in_memory(session, job, options)


def _run_in_memory(session: Session, job: Job, options: DataOptions) -> None:
    from fewbit.formats import save
    from fewbit.pipeline import quantize
    from fewbit.recipe import as_recipe
    from fewbit.sequential.memory import has_blocks
    from fewbit.sources import load_model

    recipe = as_recipe(job.recipe)
    _check_data(recipe, options)
    with session.stage("load the model"):
        loaded = load_model(job.source)
    options = options.of_language() if has_blocks(loaded.model) else options
    data: Batches | None = options.load(loaded) if options.path is not None else None
    quantized = quantize(
        loaded.model,
        recipe,
        data,
        calibrator=job.calibrator,
        algorithm=job.algorithm,
        bias_correction=job.bias_correction,
        progress=session.progress,
    )
    with session.stage("save"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        save(quantized, job.output, format=job.format, source=job.source, overwrite=job.overwrite)
    document = document_of(job, as_it_was(loaded, job.source), quantized)
    document["notes"] = [*loaded.notes, *document["notes"], *(str(warning.message) for warning in caught)]
    session.result(document, *shown(document))


def _check_names(job: Job) -> None:
    """Tell a wrong name before a model is loaded for it."""
    from fewbit import calibrate, formats
    from fewbit.sequential.automatic import check_name

    check_name(job.algorithm)
    formats.get(job.format)
    if job.calibrator is not None:
        calibrate.get(job.calibrator)


def _check_data(recipe: Recipe, options: DataOptions) -> None:
    """Tell missing data before a model is loaded."""
    scheme = recipe.default()
    if options.path is None and not recipe.rules and scheme.activations is not None and not scheme.dynamic:
        raise FewbitError(
            f"recipe {recipe.scheme} has static activations, which need calibration data: name a file or folder "
            f"with --data, or use {recipe.scheme}-dynamic"
        )


def document_of(job: Job, model: Any, quantized: Any) -> dict[str, Any]:
    """What was done, as JSON."""
    from fewbit.evaluate.size import file_bytes, layer_sizes, model_bytes
    from fewbit.nn import info, quantized_layers

    made = info(quantized)
    if made is None:
        raise FewbitError("the quantized model lost the record of how it was made")
    changed = quantized_layers(quantized)
    before = {size.name: size.nbytes for size in layer_sizes(model)}
    layers = [
        {
            "name": size.name,
            "weights": size.weights,
            "input": size.input,
            "parameters": size.parameters,
            "bytes_before": before.get(size.name, 0),
            "bytes_after": size.nbytes,
        }
        for size in layer_sizes(quantized)
        if size.name in changed
    ]
    source = Path(job.source)
    return {
        "source": job.source,
        "output": str(job.output),
        "format": job.format,
        "recipe": made.recipe,
        "algorithm": made.algorithm,
        "layers": layers,
        "skipped": made.skipped,
        "folded": [list(pair) for pair in made.folded],
        "bytes_before": model_bytes(model),
        "bytes_after": model_bytes(quantized),
        "file_before": file_bytes(source) if source.is_dir() else None,
        "file_after": file_bytes(job.output),
        "notes": made.notes,
    }


def shown(document: dict[str, Any]) -> list[RenderableType]:
    """The same for people."""
    from rich.markup import escape

    from fewbit.report.table import plain_table
    from fewbit.report.text import bytes_text, count_text, smaller_text

    table = plain_table("layers", "layer", "weights", "input", "parameters", "before", "after")
    for layer in document["layers"]:
        sizes = (bytes_text(layer["bytes_before"]), bytes_text(layer["bytes_after"]))
        name = escape(layer["name"] or "(model)")
        table.add_row(name, layer["weights"], layer["input"], count_text(layer["parameters"]), *sizes)
    for name, reason in document["skipped"].items():
        table.add_row(escape(name), "float", escape(reason), "", "", "")
    count, before, after = len(document["layers"]), document["bytes_before"], document["bytes_after"]
    summary = (
        f"{counted(count, 'layer')} quantized, {len(document['skipped'])} left in float: "
        f"{bytes_text(before)} of weights became {bytes_text(after)} "
        f"({smaller_text(before, after)}); "
        f"{document['output']} holds {count_text(document['file_after'])} bytes"
    )
    return [table, *(f"note: {escape(note)}" for note in document["notes"]), escape(summary)]
