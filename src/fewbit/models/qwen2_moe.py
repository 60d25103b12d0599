"""Qwen2-MoE: experts behind a router, a shared expert beside them, and plain blocks where the config says so."""

from fewbit.models.llama import ATTENTION, MLP, QKV
from fewbit.models.mixtral import EXPERTS, EXPERTS_SHARE_NORM
from fewbit.models.table import Family, Feed, Group, Reader, Stack

_SHARED = (
    Group(("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), why=EXPERTS_SHARE_NORM),
    Group(("mlp.shared_expert.down_proj",), Feed("mlp.shared_expert.up_proj", "linear")),
)
_READERS = (
    "mlp.gate",
    "mlp.experts.*.gate_proj",
    "mlp.experts.*.up_proj",
    "mlp.shared_expert.gate_proj",
    "mlp.shared_expert.up_proj",
    "mlp.shared_expert_gate",
    "mlp.gate_proj",
    "mlp.up_proj",
)

FAMILY = Family(
    stacks=(
        Stack(
            "layers",
            (*ATTENTION, *MLP, *EXPERTS, *_SHARED),
            readers=(Reader("input_layernorm", QKV), Reader("post_attention_layernorm", _READERS)),
            writers=(
                "self_attn.o_proj",
                "mlp.down_proj",
                "mlp.experts.*.down_proj",
                "mlp.shared_expert.down_proj",
            ),
        ),
    ),
    embeddings=("embed_tokens",),
    final_norm="norm",
    head="lm_head",
)
