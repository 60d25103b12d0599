"""``fewbit inspect``."""

from __future__ import annotations

from fewbit.cli.session import Session
from fewbit.cli.stored import as_it_was


def run_inspect(session: Session, source: str, recipe: str | None) -> None:
    """Show a model's layers and bytes.

    Raises:
        FewbitError: The source or the recipe cannot be used.
    """
    from fewbit.evaluate.inspection import inspect_model
    from fewbit.recipe import as_recipe
    from fewbit.report.inspection_table import inspection_document, inspection_table
    from fewbit.sources import load_model

    chosen = None if recipe is None else as_recipe(recipe)
    with session.stage("load the model"):
        loaded = load_model(source)
    inspection = inspect_model(as_it_was(loaded, source), chosen)
    document = {"source": source, "recipe": None if chosen is None else chosen.to_dict()}
    title = None if chosen is None else chosen.scheme
    session.result(
        {**document, **inspection_document(inspection), "notes": list(loaded.notes)},
        inspection_table(inspection, loaded.name, title),
        *(f"note: {note}" for note in loaded.notes),
    )
