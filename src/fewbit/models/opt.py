"""OPT: ReLU lets a factor pass; the 350M model has its norms behind the linears, where nothing can be folded."""

from fewbit.models.gpt2 import MEAN_SUBTRACTED
from fewbit.models.table import Family, Feed, Group, Stack

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

FAMILY = Family(
    stacks=(
        Stack(
            "decoder.layers",
            (
                Group(_QKV, Feed("self_attn_layer_norm", only_if="do_layer_norm_before")),
                Group(("self_attn.out_proj",), Feed("self_attn.v_proj", "values")),
                Group(("fc1",), Feed("final_layer_norm", only_if="do_layer_norm_before")),
                Group(("fc2",), Feed("fc1", "linear", only_if="activation_function=relu")),
            ),
        ),
    ),
    embeddings=("decoder.embed_tokens", "decoder.embed_positions", "decoder.project_in"),
    final_norm="decoder.final_layer_norm",
    head="lm_head",
    no_rotation=MEAN_SUBTRACTED,
)
