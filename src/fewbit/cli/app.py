"""The commands and their arguments."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from fewbit import __version__
from fewbit.cli import bench, language
from fewbit.cli.options import (
    AsJson,
    BatchSize,
    BiasCorrection,
    Calibrator,
    DataOptions,
    DataPath,
    Dtype,
    ImageSize,
    Mean,
    Memory,
    NoBiasCorrection,
    Restart,
    Samples,
    Source,
    Std,
    Streaming,
    Tokenizer,
    Tokens,
)
from fewbit.cli.session import INTERRUPTED, USER_ERROR, Terminated, refuse_options, running, tell_error
from fewbit.errors import FewbitError

app = typer.Typer(
    name="fewbit",
    help="Quantize neural networks, and know exactly what it cost.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Recipe = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        metavar="SCHEME|FILE.toml",
        help="W8A8, W8A8-dynamic, W8A16, W4A16-g128, … or a file.",
    ),
]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    Args:
        arguments: What follows the program's name; ``sys.argv`` by default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with _ending_cleanly():
        try:
            code = app(args=given, prog_name="fewbit", standalone_mode=False)
        except typer.Abort:
            sys.exit(INTERRUPTED)
        except Exception as error:
            tell = getattr(error, "format_message", None)  # an unknown option, a missing argument, …
            if tell is None:
                raise
            sys.exit(_usage(error, tell(), as_json="--json" in given))
    sys.exit(code if isinstance(code, int) else 0)


@app.callback(invoke_without_command=True)
def fewbit(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Quantize neural networks, and know exactly what it cost."""
    if version:
        print(f"fewbit {__version__}")
        raise typer.Exit()


@app.command()
def quantize(
    source: Source,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="OUT", help="The folder to write; of an .onnx file FILE.onnx.", show_default=False
        ),
    ],
    recipe: Recipe = "W8A8",
    algorithm: Annotated[str, typer.Option("--algorithm", help="How weights are rounded.")] = "auto",
    calibrator: Calibrator = None,
    data: DataPath = None,
    format_: Annotated[str, typer.Option("--format", help="The file format of OUT.")] = "native",
    samples: Samples = None,
    batch_size: BatchSize = None,
    bias_correction: BiasCorrection = "empirical",
    no_bias_correction: NoBiasCorrection = False,
    target: Annotated[
        str,
        typer.Option(
            "--target", help="onnxruntime, openvino or tensorrt: whose rules to follow.", rich_help_panel="ONNX"
        ),
    ] = "onnxruntime",
    equalize: Annotated[
        bool,
        typer.Option("--equalize/--no-equalize", help="Even out channels of linear streams.", rich_help_panel="ONNX"),
    ] = True,
    only_if_faster: Annotated[
        bool,
        typer.Option(
            "--only-if-faster", help="Measure; leave in float what integers do not speed up.", rich_help_panel="ONNX"
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    tokens: Tokens = None,
    tokenizer: Tokenizer = None,
    memory: Memory = "8GiB",
    dtype: Dtype = None,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a model and save it. A Hugging Face folder is streamed; an interrupted run goes on where it was."""
    with running(as_json) as session:
        from fewbit.algorithms.bias_correction import mode
        from fewbit.cli.onnx import OnnxJob, is_onnx, onnx_options, refuse_others, run_quantize_onnx
        from fewbit.cli.quantize import Job, run_quantize

        correction = "none" if no_bias_correction else mode(bias_correction)
        options = DataOptions(data, samples, batch_size, image_size, mean, std, tokens, tokenizer)
        streaming = Streaming(memory, dtype, restart)
        refuse_others(source, streaming, format_, onnx_options(target, equalize, only_if_faster))
        if is_onnx(source):
            names = (algorithm, calibrator, correction, equalize, target, only_if_faster, overwrite)
            run_quantize_onnx(session, OnnxJob(source, output, recipe, *names), options)
            return
        job = Job(source, output, recipe, algorithm, calibrator, format_, correction, overwrite, streaming)
        run_quantize(session, job, options)


@app.command()
def inspect(
    source: Source,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="SCHEME|FILE.toml",
            help="Also show the bytes under this recipe.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's layers, parameters, and bytes at FP32, FP16, INT8 and INT4."""
    with running(as_json) as session:
        from fewbit.cli.inspect import run_inspect
        from fewbit.cli.onnx import is_onnx, run_inspect_onnx

        if is_onnx(source):
            run_inspect_onnx(session, source, recipe)
            return
        run_inspect(session, source, recipe)


@app.command()
def compare(
    source: Source,
    quantized: Annotated[
        str, typer.Argument(metavar="QUANTIZED", help="The quantized model: a folder saved by fewbit, or FILE.onnx.")
    ],
    data: DataPath = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE.html", help="Also write a page with charts.", show_default=False),
    ] = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    repeats: Annotated[int, typer.Option("--repeats", min=0, help="Timed runs of each model; 0 for none.")] = 9,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it exists.")] = False,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    tokens: Tokens = None,
    as_json: AsJson = False,
) -> None:
    """Tell what quantization cost: error layer by layer, size, and time."""
    with running(as_json) as session:
        from fewbit.cli.compare import run_compare
        from fewbit.cli.onnx import is_onnx, run_compare_onnx

        options = DataOptions(data, samples, batch_size, image_size, mean, std, tokens)
        if is_onnx(source) != is_onnx(quantized):
            raise FewbitError("compare takes two ONNX files or two PyTorch models, not one of each")
        if is_onnx(source):
            refuse_options({"--html": html is not None}, "for ONNX files")
            run_compare_onnx(session, source, quantized, options, repeats)
            return
        run_compare(session, source, quantized, options, html=html, overwrite=overwrite, repeats=repeats)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer settings, for a first look.")] = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a real image classifier and a real text encoder, and show what it cost."""
    with running(as_json) as session:
        from fewbit.cli.demo import run

        run(session, quick)


app.command()(language.evaluate)
app.command()(language.generate)
app.command()(bench.bench)


@contextlib.contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does, so that what is half written is removed."""

    def terminate(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _usage(error: Any, message: str, as_json: bool) -> int:
    """Tell a usage error as one sentence; its exit code."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "fewbit"
    if not message.strip():  # no command at all: the help was printed
        return USER_ERROR
    tell_error(f"{message.strip().rstrip('.')}; see {command} --help", as_json)
    return USER_ERROR
