"""GPT-2: linears are Hugging Face's ``Conv1D``; GELU stands in front of the second linear of each block."""

from fewbit.models.table import Family, Feed, Group, Stack

NOT_THROUGH_GELU = "GELU stands between, and a factor does not pass through it"
MEAN_SUBTRACTED = "LayerNorm subtracts the mean over the channels, which a rotation does not keep"

FAMILY = Family(
    stacks=(
        Stack(
            "h",
            (
                Group(("attn.c_attn",), Feed("ln_1")),
                Group(("attn.c_proj",), Feed("attn.c_attn", "values")),
                Group(("mlp.c_fc",), Feed("ln_2")),
                Group(("mlp.c_proj",), why=NOT_THROUGH_GELU),
            ),
        ),
    ),
    embeddings=("wte", "wpe"),
    final_norm="ln_f",
    head="lm_head",
    no_rotation=MEAN_SUBTRACTED,
)
