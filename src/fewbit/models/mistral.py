"""Mistral: built like Llama."""

from fewbit.models.llama import FAMILY

__all__ = ["FAMILY"]
