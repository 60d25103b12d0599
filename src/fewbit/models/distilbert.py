"""DistilBERT: BERT under other names."""

from fewbit.models.bert import ALSO_RESIDUAL
from fewbit.models.gpt2 import NOT_THROUGH_GELU
from fewbit.models.table import Family, Feed, Group, Stack

FAMILY = Family(
    stacks=(
        Stack(
            "transformer.layer",
            (
                Group(("attention.q_lin", "attention.k_lin", "attention.v_lin"), why=ALSO_RESIDUAL),
                Group(("attention.out_lin",), Feed("attention.v_lin", "values")),
                Group(("ffn.lin1",), why=ALSO_RESIDUAL),
                Group(("ffn.lin2",), why=NOT_THROUGH_GELU),
            ),
        ),
    ),
    embeddings=("embeddings",),
    no_rotation=ALSO_RESIDUAL,
)
