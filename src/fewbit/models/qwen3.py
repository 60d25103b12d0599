"""Qwen3: built like Llama; its norms of queries and keys stand behind the linears and do not matter here."""

from fewbit.models.llama import FAMILY

__all__ = ["FAMILY"]
