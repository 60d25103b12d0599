"""Llama, and the many that are built like it."""

from fewbit.models.table import Family, Feed, Group, Reader, Stack

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
ATTENTION = (
    Group(QKV, Feed("input_layernorm")),
    Group(("self_attn.o_proj",), Feed("self_attn.v_proj", "values")),
)
MLP = (
    Group(GATE_UP, Feed("post_attention_layernorm")),
    Group(("mlp.down_proj",), Feed("mlp.up_proj", "linear")),
)

FAMILY = Family(
    stacks=(
        Stack(
            "layers",
            (*ATTENTION, *MLP),
            readers=(Reader("input_layernorm", QKV), Reader("post_attention_layernorm", GATE_UP)),
            writers=("self_attn.o_proj", "mlp.down_proj"),
        ),
    ),
    embeddings=("embed_tokens",),
    final_norm="norm",
    head="lm_head",
)
