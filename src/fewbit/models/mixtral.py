"""Mixtral: Llama's attention, and experts behind a router.

The experts are named as :func:`fewbit.nn.experts.split_experts` names them.
"""

from fewbit.models.llama import ATTENTION, QKV
from fewbit.models.table import Family, Feed, Group, Reader, Stack

EXPERTS_SHARE_NORM = "experts see different tokens, and the router reads the same norm"
EXPERTS = (
    Group(("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"), why=EXPERTS_SHARE_NORM),
    Group(("mlp.experts.*.down_proj",), Feed("mlp.experts.*.up_proj", "linear")),
)

FAMILY = Family(
    stacks=(
        Stack(
            "layers",
            (*ATTENTION, *EXPERTS),
            readers=(
                Reader("input_layernorm", QKV),
                Reader("post_attention_layernorm", ("mlp.gate", "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj")),
            ),
            writers=("self_attn.o_proj", "mlp.experts.*.down_proj"),
        ),
    ),
    embeddings=("embed_tokens",),
    final_norm="norm",
    head="lm_head",
)
