"""``fewbit evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.cli.session import Session
from fewbit.errors import FewbitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from torch import Tensor, nn

    from fewbit.sources import LoadedModel


@dataclass(frozen=True)
class Question:
    """What is to be measured, and on what."""

    source: str
    text: Path
    against: str | None
    tokens: int
    stride: int | None
    windows: int | None
    bos: bool | None
    kv: str | None
    tokenizer: Path | None


def run_evaluate(session: Session, question: Question) -> None:
    """Measure perplexity, and the distance from the float model where one is named.

    Raises:
        FewbitError: A model, the text or the tokenizer cannot be used.
    """
    text = read_text(question.text)
    cached = _cached(question.kv)
    from fewbit.evaluate.perplexity import perplexity, text_windows
    from fewbit.sources import load_model

    with session.stage("load the model"):
        loaded = load_model(question.source)
    against = None
    if question.against is not None:
        with session.stage("load the float model"):
            against = load_model(question.against)
    windows = text_windows(
        text,
        find_tokenizer(question.tokenizer, loaded, against),
        length=question.tokens,
        stride=question.stride,
        bos=question.bos,
        limit=question.windows,
        name=str(question.text),
    )
    reference = None if against is None else against.model
    logits = None if cached is None else cached[0]
    found = perplexity(loaded.model, windows, against=reference, logits=logits, progress=session.progress)
    named = {"source": question.source, "text": str(question.text), "against": question.against}
    kv = "float" if cached is None else cached[1]
    document = {**named, "kv": kv, **found.to_dict(), "notes": list(loaded.notes)}
    session.result(document, *_shown(found, loaded, kv))


def _cached(kv: str | None) -> tuple[Callable[[nn.Module, Tensor], Tensor], str] | None:
    """How to predict through a quantized cache, and how to call it; None for a float cache."""
    if kv is None or kv == "float":
        return None
    from fewbit.generation.kv_options import KVOptions

    options = KVOptions.parse(kv)

    def logits(model: nn.Module, ids: Tensor) -> Tensor:
        from fewbit.generation.decode import cached_logits
        from fewbit.generation.kv_cache import quantized_cache

        # No longer than the window, so that every token sees the past as it would one by one.
        chunk = max(min(options.block, options.window), 1)
        return cached_logits(model, ids, quantized_cache(model, options), chunk)

    return logits, options.describe()


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        FewbitError: It cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise FewbitError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FewbitError(f"{path} is no UTF-8 text: {error}") from error


def find_tokenizer(named: Path | None, *models: LoadedModel | None) -> Any:
    """The tokenizer of the folder that was named, else of the first model whose folder has one.

    Raises:
        FewbitError: There is none.
    """
    from fewbit.sources.text import load_tokenizer

    found = [each.tokenizer_dir for each in models if each is not None and each.tokenizer_dir is not None]
    if named is None and not found:
        raise FewbitError("the model's folder holds no tokenizer; name a folder that does with --tokenizer")
    return load_tokenizer(named or found[0])


def _shown(found: Any, loaded: LoadedModel, kv: str) -> list[RenderableType]:
    from rich.markup import escape

    from fewbit.report.table import plain_table
    from fewbit.report.text import percent_text

    table = plain_table(f"perplexity of {escape(loaded.name)}", "", "")
    table.add_row("perplexity", f"{found.perplexity:.4f}")
    if found.kl is not None:
        table.add_row("of the float model", f"{found.float_perplexity:.4f}")
        table.add_row("KL divergence, nats", f"{found.kl:.5f}")
        table.add_row("same top-1 token", percent_text(found.top1))
    cut = f"{found.tokens} tokens scored: {found.windows.describe()}"
    told = [] if kv == "float" else [f"keys and values: {kv}"]
    return [table, cut, *told, *(f"note: {escape(note)}" for note in loaded.notes)]
