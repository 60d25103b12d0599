"""The products of the benchmarks."""

from __future__ import annotations

import torch

from fewbit.bench.case import Case


def test_a_case_tells_its_size() -> None:
    case = Case(2, 256, 64, 4, 128)
    assert (case.shape, case.weights) == ("2×256×64", "int4 g128")
    assert case.operations == 2 * 2 * 256 * 64
    assert case.packed_bytes() == 256 * 64 // 2 + 64 * 2 * 2
    assert Case(1, 8, 8, 8, 0).weights == "int8 channel"
    assert Case(1, 8, 8, 8, 0).packed_bytes(4) == 64 + 8 * 4


def test_copies_walk_through_the_footprint() -> None:
    case = Case(1, 8, 8, 4, 8, footprint=1000)
    assert [case.copies(n) for n in (10, 333, 334, 5000)] == [100, 4, 3, 2]


def test_the_rounded_weight_is_the_weight() -> None:
    for bits, group in ((4, 32), (8, 0)):
        case = Case(1, 64, 16, bits, group)
        codes, scale = case.rounded()
        assert codes.abs().max() == 2 ** (bits - 1) - 1
        assert ((codes * scale).reshape(16, 64) - case.weight).abs().max() <= scale.max() / 2 * 1.0001


def test_the_same_case_has_the_same_data() -> None:
    assert torch.equal(Case(2, 16, 8, 4).weight, Case(2, 16, 8, 4).weight)
