"""BERT, MiniLM and the like: norms stand behind the residual sum, so their output is both input and residual."""

from fewbit.models.gpt2 import NOT_THROUGH_GELU
from fewbit.models.table import Family, Feed, Group, Stack

ALSO_RESIDUAL = "the norm's output is also the residual stream, which a factor must not change"

FAMILY = Family(
    stacks=(
        Stack(
            "encoder.layer",
            (
                Group(("attention.self.query", "attention.self.key", "attention.self.value"), why=ALSO_RESIDUAL),
                Group(("attention.output.dense",), Feed("attention.self.value", "values")),
                Group(("intermediate.dense",), why=ALSO_RESIDUAL),
                Group(("output.dense",), why=NOT_THROUGH_GELU),
            ),
        ),
    ),
    embeddings=("embeddings",),
    no_rotation=ALSO_RESIDUAL,
)
