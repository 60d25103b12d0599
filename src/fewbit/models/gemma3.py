"""Gemma 3 with its picture encoder: the language model of ``gemma3_text`` one level deeper."""

from fewbit.models.gemma2 import GROUPS, NO_ROTATION
from fewbit.models.table import Family, Stack

FAMILY = Family(
    stacks=(Stack("language_model.layers", GROUPS),),
    embeddings=("language_model.embed_tokens",),
    final_norm="language_model.norm",
    head="lm_head",
    no_rotation=NO_ROTATION,
)
