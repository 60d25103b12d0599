"""Whisper: an encoder of sound and a decoder of text, with norms in front of attention and the two linears."""

from fewbit.models.gpt2 import MEAN_SUBTRACTED, NOT_THROUGH_GELU
from fewbit.models.table import Family, Feed, Group, Stack

_SELF = (
    Group(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), Feed("self_attn_layer_norm")),
    Group(("self_attn.out_proj",), Feed("self_attn.v_proj", "values")),
)
_CROSS = (
    Group(("encoder_attn.q_proj",), Feed("encoder_attn_layer_norm")),
    Group(
        ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        why="all decoder blocks read the encoder's output, whose norm cannot serve each of them",
    ),
    Group(("encoder_attn.out_proj",), Feed("encoder_attn.v_proj", "values")),
)
_MLP = (
    Group(("fc1",), Feed("final_layer_norm")),
    Group(("fc2",), why=NOT_THROUGH_GELU),
)

FAMILY = Family(
    stacks=(Stack("encoder.layers", (*_SELF, *_MLP)), Stack("decoder.layers", (*_SELF, *_CROSS, *_MLP))),
    embeddings=("decoder.embed_tokens", "decoder.embed_positions"),
    final_norm="decoder.layer_norm",
    head="proj_out",
    no_rotation=MEAN_SUBTRACTED,
)
