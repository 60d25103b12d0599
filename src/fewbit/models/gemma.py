"""Gemma 1: built like Llama, with norms that multiply by one plus their weight."""

from fewbit.models.llama import FAMILY as LLAMA
from fewbit.models.llama import GATE_UP, QKV
from fewbit.models.table import Family, Feed, Group, Stack

FAMILY = Family(
    stacks=(
        Stack(
            "layers",
            (
                Group(QKV, Feed("input_layernorm", "norm_plus_one")),
                Group(("self_attn.o_proj",), Feed("self_attn.v_proj", "values")),
                Group(GATE_UP, Feed("post_attention_layernorm", "norm_plus_one")),
                Group(("mlp.down_proj",), Feed("mlp.up_proj", "linear")),
            ),
            readers=LLAMA.stacks[0].readers,
            writers=LLAMA.stacks[0].writers,
        ),
    ),
    embeddings=LLAMA.embeddings,
    final_norm=LLAMA.final_norm,
    head=LLAMA.head,
)
