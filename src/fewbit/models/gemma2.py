"""Gemma 2: norms before and behind attention and the gated layers, all of which multiply by one plus their weight."""

from fewbit.models.llama import GATE_UP, QKV
from fewbit.models.table import Family, Feed, Group, Stack

GROUPS = (
    Group(QKV, Feed("input_layernorm", "norm_plus_one")),
    Group(("self_attn.o_proj",), Feed("self_attn.v_proj", "values")),
    Group(GATE_UP, Feed("pre_feedforward_layernorm", "norm_plus_one")),
    Group(("mlp.down_proj",), Feed("mlp.up_proj", "linear")),
)
NO_ROTATION = (
    "a norm with a weight stands between each output projection and the residual stream, and a rotation does not "
    "pass through that weight"
)

FAMILY = Family(
    stacks=(Stack("layers", GROUPS),),
    embeddings=("embed_tokens",),
    final_norm="norm",
    head="lm_head",
    no_rotation=NO_ROTATION,
)
