"""What a user names on the command line, made into a model (:mod:`.model`) or into batches of data
(:mod:`.data`)."""

from __future__ import annotations

from fewbit.sources.batches import Batch, Batches
from fewbit.sources.data import kind_of, load_data
from fewbit.sources.model import LoadedModel, load_model
from fewbit.sources.preparation import ImageOptions
from fewbit.sources.text import TextOptions

__all__ = ["Batch", "Batches", "ImageOptions", "LoadedModel", "TextOptions", "kind_of", "load_data", "load_model"]
