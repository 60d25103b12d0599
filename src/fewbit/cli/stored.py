"""Models as their checkpoints hold them, for tables of bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from fewbit.errors import FewbitError

if TYPE_CHECKING:
    from torch import nn

    from fewbit.sources import LoadedModel


def as_it_was(loaded: LoadedModel, source: str) -> nn.Module:
    """The float model, to be measured: from a folder it was loaded as float32, whatever the checkpoint holds. Where
    that cannot be told it is the model as loaded: after minutes of work, a table that is less exact is better than
    none."""
    from fewbit.sequential.assemble import as_stored

    if loaded.kind == "huggingface":
        with contextlib.suppress(FewbitError):
            return as_stored(Path(source))
    return loaded.model
