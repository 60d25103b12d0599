from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import FewbitError
from fewbit.numbers.codebook import BINARY, NF4, TERNARY, Codebook, known, parse


@pytest.mark.parametrize("book", known(), ids=lambda b: b.name)
def test_every_index_decodes_to_its_value_and_back(book: Codebook) -> None:
    codes = torch.arange(len(book.values), dtype=torch.uint8)
    values = book.decode(codes)
    assert values.tolist() == list(book.values)
    assert torch.equal(book.encode(values), codes)
    assert torch.equal(book.round(values), values)


def test_nf4_is_the_papers() -> None:
    assert (NF4.bits, NF4.qmin, NF4.qmax, len(NF4.values)) == (4, -1.0, 1.0, 16)
    assert 0.0 in NF4.values
    # QLoRA, section 3: quantiles of the standard normal, 8 below and 9 above (0 in both), scaled to [-1, 1].
    offset = 0.9677083
    normal = torch.distributions.Normal(0.0, 1.0)
    positive = normal.icdf(torch.linspace(offset, 0.5, 9)[:-1])
    negative = -normal.icdf(torch.linspace(offset, 0.5, 8)[:-1])
    table = torch.cat([positive, negative, torch.zeros(1)]).sort().values
    torch.testing.assert_close(torch.tensor(NF4.values), table / table.abs().max(), atol=1e-6, rtol=0)


def test_ties_go_to_the_even_index() -> None:
    book = Codebook("quarters", (0.0, 1.0, 2.0, 4.0))
    assert book.encode(torch.tensor([0.5, 1.5, 3.0])).tolist() == [0, 2, 2]
    assert book.round(torch.tensor([-9.0, 0.49, 0.51, 3.01, 99.0])).tolist() == [0, 0, 1, 4, 4]
    assert TERNARY.round(torch.tensor([-0.5, 0.5])).tolist() == [-1.0, 1.0]  # indices 0 and 2
    assert BINARY.bits == 1
    assert TERNARY.bits == 2


@given(
    st.lists(st.floats(-100, 100, width=16), min_size=2, max_size=256, unique=True),
    st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=20),
)
def test_no_other_value_is_nearer(values: list[float], xs: list[float]) -> None:
    book = Codebook("any", tuple(sorted({v + 0.0 for v in values})))
    x = torch.tensor(xs)
    distance = (x.double() - book.round(x).double()).abs()
    every = (x.double()[:, None] - torch.tensor(book.values, dtype=torch.float64)).abs()
    assert torch.equal(distance, every.min(dim=1).values)


@pytest.mark.parametrize(
    "values",
    [
        (),
        (1.0,),
        (1.0, 1.0),
        (2.0, 1.0),
        (0.0, float("inf")),
        (0.0, float("nan")),
        tuple(map(float, range(257))),
    ],
)
def test_what_is_no_codebook_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(FewbitError, match="'mine' needs 2 to 256 finite values"):
        Codebook("mine", values)


def test_unknown_names_are_none() -> None:
    assert parse("nf5") is None
