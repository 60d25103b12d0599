"""Qwen3-MoE: Qwen2-MoE without the shared expert."""

from fewbit.models.qwen2_moe import FAMILY

__all__ = ["FAMILY"]
