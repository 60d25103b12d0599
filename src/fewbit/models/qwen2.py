"""Qwen2 and Qwen2.5: built like Llama, with biases on queries, keys and values."""

from fewbit.models.llama import FAMILY

__all__ = ["FAMILY"]
