"""The commands for language models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli.options import AsJson, Source
from fewbit.cli.session import running


def evaluate(
    source: Source,
    text: Annotated[
        Path, typer.Option("--perplexity", metavar="TEXT", help="A text file (UTF-8) to predict.", show_default=False)
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="FLOAT_FOLDER",
            help="The float model: also tell KL divergence and top-1 agreement.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens of text a window.")] = 512,
    stride: Annotated[
        int | None,
        typer.Option("--stride", min=1, help="Tokens between two windows.", show_default="no overlap"),
    ] = None,
    windows: Annotated[
        int | None, typer.Option("--windows", min=1, help="Use only the first windows.", show_default="all")
    ] = None,
    bos: Annotated[
        bool | None,
        typer.Option("--bos/--no-bos", help="Put BOS before each window.", show_default="as the tokenizer does"),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option("--tokenizer", metavar="FOLDER", help="Where the tokenizer is.", show_default="SOURCE"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a language model: perplexity on a text, and its distance from the float model."""
    with running(as_json) as session:
        from fewbit.cli.evaluate import Question, run_evaluate

        run_evaluate(session, Question(source, text, against, tokens, stride, windows, bos, tokenizer))
