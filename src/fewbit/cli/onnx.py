"""The commands on ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.cli.options import DataOptions, Streaming
from fewbit.cli.session import Session, check_output, check_sources, refuse_options
from fewbit.errors import FewbitError
from fewbit.wording import counted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fewbit.sources.onnx_data import OnnxBatches


@dataclass(frozen=True)
class OnnxJob:
    """What is to be quantized, how, and where it goes."""

    source: str
    output: Path
    recipe: str
    algorithm: str
    calibrator: str | None
    bias_correction: str
    equalize: bool
    target: str
    only_if_faster: bool
    overwrite: bool


def is_onnx(source: str) -> bool:
    """Whether a SOURCE is an ONNX file."""
    return source.lower().endswith(".onnx")


def onnx_options(target: str, equalize: bool, only_if_faster: bool) -> dict[str, bool]:
    """Which of the options that only ONNX files have the user gave."""
    return {"--target": target != "onnxruntime", "--no-equalize": not equalize, "--only-if-faster": only_if_faster}


def refuse_others(source: str, streaming: Streaming, format: str, onnx: dict[str, bool]) -> None:
    """Tell of options that do nothing for this kind of SOURCE.

    Raises:
        FewbitError: One was given.
    """
    if is_onnx(source):
        refuse_options(streaming.given() | {"--format": format != "native"}, "for an ONNX file")
    else:
        refuse_options(onnx, "for a PyTorch model")


def run_quantize_onnx(session: Session, job: OnnxJob, options: DataOptions) -> None:
    """Quantize an ONNX file, and tell what was done.

    Raises:
        FewbitError: Something the user named cannot be used; nothing is left at the output then.
    """
    refuse_options({"--tokenizer": options.tokenizer is not None}, "for an ONNX file")
    check_sources(job.output, job.source, options.path, job.recipe)
    if not is_onnx(str(job.output)):
        raise FewbitError(f"an ONNX file is quantized to one: name an output that ends in .onnx, not {job.output}")
    check_output(job.output, folder=False, overwrite=job.overwrite)
    options.check()
    from fewbit.onnxgraph import file

    file.check_installed()
    from fewbit import calibrate
    from fewbit.algorithms import bias_correction
    from fewbit.onnxgraph import targets
    from fewbit.onnxpipeline.quantize import Settings, quantize_file, split_algorithm

    bias_correction.mode(job.bias_correction, batch_norms=False)
    split_algorithm(job.algorithm, data=True)
    targets.get(job.target)
    if job.calibrator is not None:
        calibrate.get(job.calibrator)
    data = load_batches(Path(job.source), options) if options.path is not None else None
    settings = Settings(
        target=job.target,
        calibrator=job.calibrator,
        algorithm=job.algorithm,
        bias_correction=job.bias_correction != "none",
        equalize=job.equalize,
        only_if_faster=job.only_if_faster,
        overwrite=job.overwrite,
    )
    result = quantize_file(job.source, job.recipe, data, job.output, settings, session.progress)
    document = {"source": job.source, "recipe": job.recipe, **result.to_dict()}
    session.result(document, *_shown(document))


def load_batches(source: Path, options: DataOptions) -> OnnxBatches:
    """The data of the command line for an ONNX model.

    Raises:
        FewbitError: There is none, or it cannot be read.
    """
    from fewbit.onnxgraph import file
    from fewbit.sources import TextOptions
    from fewbit.sources.onnx_data import load_onnx_data

    if options.path is None:
        raise FewbitError("this needs data; name a file or folder with --data")
    return load_onnx_data(
        options.path,
        file.read(source),
        source,
        batch_size=options.batch_size,  # None: as the model says
        limit=options.samples,
        image=options.image(),
        length=TextOptions().length if options.tokens is None else options.tokens,
    )


def _shown(document: dict[str, Any]) -> list[RenderableType]:
    from rich.markup import escape

    from fewbit.report.table import plain_table
    from fewbit.report.text import bytes_text, count_text, smaller_text

    table = plain_table("layers", "layer", "type", "weights", "input", "parameters", "before", "after")
    for layer in document["layers"]:
        sizes = (bytes_text(layer["bytes_before"]), bytes_text(layer["bytes_after"]))
        about = (layer["kind"], layer["weights"], layer["input"], count_text(layer["parameters"]))
        table.add_row(escape(layer["name"]), *about, *sizes)
    for name, reason in document["skipped"].items():
        table.add_row(escape(name), "", "float", escape(reason), "", "", "")
    parts: list[RenderableType] = [table]
    if document["regions"]:
        parts.append(_region_table(document["regions"]))
    count, before, after = len(document["layers"]), document["bytes_before"], document["bytes_after"]
    summary = (
        f"{counted(count, 'layer')} quantized for {document['target']}, {len(document['skipped'])} left "
        f"in float; {document['output']} holds {count_text(after)} bytes ({smaller_text(before, after)})"
    )
    return [*parts, *(f"note: {escape(note)}" for note in document["notes"]), escape(summary)]


def _region_table(regions: Any) -> RenderableType:
    from rich.markup import escape

    from fewbit.report.table import plain_table
    from fewbit.report.text import seconds_text, times_text

    table = plain_table("faster or not at all", "region", "layers", "in integers", "in float", "", "decision")
    for region in regions:
        names = region["layers"]
        name = names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"
        took = (seconds_text(region["integers"]), seconds_text(region["floats"]))
        ratio = times_text(region["floats"] / max(region["integers"], 1e-12))
        table.add_row(escape(name), str(len(names)), *took, ratio, "integers" if region["kept"] else "float")
    table.caption = "time of the whole model, the other regions as decided up to there; medians of interleaved runs"
    return table


def run_compare_onnx(session: Session, before: str, after: str, options: DataOptions, repeats: int) -> None:
    """Compare two ONNX files.

    Raises:
        FewbitError: A file or the data cannot be used.
    """
    if options.path is None:
        raise FewbitError("compare needs data to run both models on; name a file or folder with --data")
    options.check()
    from fewbit.onnxgraph import file

    file.check_installed()
    from fewbit.evaluate.onnx_models import compare_onnx
    from fewbit.report.onnx_table import onnx_comparison_document, onnx_comparison_tables

    batches = load_batches(Path(before), options)
    found = compare_onnx(before, after, batches, repeats=repeats, progress=session.progress)
    document = {"source": before, "quantized": after, "data": str(options.path), **onnx_comparison_document(found)}
    session.result(document, onnx_comparison_tables(found))


def run_inspect_onnx(session: Session, source: str, recipe: str | None) -> None:
    """Show what an ONNX file holds.

    Raises:
        FewbitError: It cannot be read, or a recipe is given.
    """
    if recipe is not None:
        raise FewbitError("inspect shows an ONNX file as it is; leave --recipe out")
    from fewbit.evaluate.onnx_inspection import inspect_onnx
    from fewbit.report.onnx_table import onnx_inspection_document, onnx_inspection_tables

    found = inspect_onnx(source)
    session.result(
        {"source": source, **onnx_inspection_document(found)}, onnx_inspection_tables(found, Path(source).name)
    )
