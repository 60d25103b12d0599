"""XLM-RoBERTa: built like BERT."""

from fewbit.models.bert import FAMILY

__all__ = ["FAMILY"]
