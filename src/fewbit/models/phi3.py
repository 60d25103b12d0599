"""Phi-3 and Phi-4: built like Llama, with queries, keys and values in one linear, gate and up in another."""

from fewbit.models.table import Family, Feed, Group, Reader, Stack

FAMILY = Family(
    stacks=(
        Stack(
            "layers",
            (
                Group(("self_attn.qkv_proj",), Feed("input_layernorm")),
                Group(("self_attn.o_proj",), Feed("self_attn.qkv_proj", "values")),
                Group(("mlp.gate_up_proj",), Feed("post_attention_layernorm")),
                Group(("mlp.down_proj",), Feed("mlp.gate_up_proj", "linear")),
            ),
            readers=(
                Reader("input_layernorm", ("self_attn.qkv_proj",)),
                Reader("post_attention_layernorm", ("mlp.gate_up_proj",)),
            ),
            writers=("self_attn.o_proj", "mlp.down_proj"),
        ),
    ),
    embeddings=("embed_tokens",),
    final_norm="norm",
    head="lm_head",
)
