"""The commands for language models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from fewbit.cli.options import AsJson, Source, Tokenizer
from fewbit.cli.session import running

KV: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--kv",
        metavar="int8|int4|…",
        help="Quantize the cache of keys and values; int4-w64 keeps the newest 64 tokens in float.",
        show_default="float",
    ),
]


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
    kv: KV = None,
    tokenizer: Tokenizer = None,
    as_json: AsJson = False,
) -> None:
    """Measure a language model: perplexity on a text, and its distance from the float model."""
    with running(as_json) as session:
        from fewbit.cli.evaluate import Question, run_evaluate

        run_evaluate(session, Question(source, text, against, tokens, stride, windows, bos, kv, tokenizer))


def generate(
    source: Source,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="The text to go on from.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="A file that holds it.", show_default=False)
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="At most so many new tokens.")] = 128,
    kv: KV = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Of the likeliest tokens only.")] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of the random numbers.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt in the tokenizer's chat template.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="Of what stays float: float32, bfloat16, float16.")] = "float32",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="torch's choice")
    ] = None,
    tokenizer: Tokenizer = None,
    as_json: AsJson = False,
) -> None:
    """Write text with a language model, token by token, and tell the speed."""
    with running(as_json) as session:
        from fewbit.cli.generate import Wish, run_generate

        run_generate(
            session,
            Wish(source, prompt, prompt_file, tokens, kv, temperature, top_p, seed, chat, dtype, threads, tokenizer),
        )
