"""Gemma 3 without its picture encoder: built like Gemma 2; its norms of queries and keys do not matter here."""

from fewbit.models.gemma2 import FAMILY

__all__ = ["FAMILY"]
