"""AWQ: scales that help where inputs differ in size, and never a worse objective than without them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms import awq, rtn
from fewbit.calibrate.gram import Gram, Statistics, output_error
from fewbit.errors import FewbitError
from fewbit.numbers.spec import QSpec

QUICK = awq.Options(grid=5, clips=6)
SPEC = QSpec.parse("int4/g16/sym")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def inputs(seed: int, columns: int = 32, outliers: int = 3) -> tuple[torch.Tensor, Statistics]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, columns, generator=generator)
    x[:, torch.randperm(columns, generator=generator)[:outliers]] *= 30
    gram = Gram(columns, "w")
    gram.update(x)
    return x, Statistics(gram)


def error(weight: torch.Tensor, scale: torch.Tensor, seen: Statistics, spec: QSpec) -> float:
    """Of a layer whose weight was scaled and rounded, in the original coordinates."""
    gram = Gram(len(scale), "w")
    gram.update(torch.linalg.cholesky(seen.gram.matrix / torch.outer(scale, scale) + 1e-9 * torch.eye(len(scale))).T)
    t = awq.quantize_weight(weight * scale, spec, QUICK, "w", Statistics(gram))
    return float(output_error(t.dequantize() / scale - weight, seen.gram.matrix).sum())


def test_large_inputs_get_large_scales_and_a_smaller_error() -> None:
    x, seen = inputs(0)
    weight = torch.randn(24, 32)
    scale = awq.search_scale([weight], [SPEC], seen, QUICK)
    assert scale.shape == (32,)
    large = x.abs().mean(0) > 5
    assert float(scale[large].min()) > 1.5 * float(scale[~large].median())
    assert error(weight, scale, seen, SPEC) < 0.95 * error(weight, torch.ones(32), seen, SPEC)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["int3/g16/asym", "int4/channel/sym"]), st.integers(0, 4))
def test_never_worse_than_no_scale(seed: int, text: str, outliers: int) -> None:
    _, seen = inputs(seed, outliers=outliers)
    spec, weight = QSpec.parse(text), torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    scale = awq.search_scale([weight], [spec], seen, QUICK)
    assert bool((scale > 0).all())
    assert error(weight, scale, seen, spec) <= error(weight, torch.ones(32), seen, spec) * (1 + 1e-3)


def test_layers_that_share_an_input_share_the_scale() -> None:
    _, seen = inputs(1)
    weights = [torch.randn(8, 32), torch.randn(40, 32)]
    together = awq.search_scale(weights, [SPEC, SPEC], seen, QUICK)
    whole = awq.search_scale([torch.cat(weights)], [SPEC], seen, QUICK)
    assert torch.equal(together, whole)


def test_channels_of_one_feeding_channel_have_one_scale() -> None:
    _, seen = inputs(2)
    channels = torch.arange(32) % 16
    scale = awq.search_scale([torch.randn(8, 32)], [SPEC], seen, QUICK, channels)
    assert scale.shape == (16,)
    assert not torch.equal(scale, torch.ones(16))


def test_the_output_decides_the_clip() -> None:
    """A large weight that meets almost no input is clipped, so that the others get finer steps."""
    weight, gram = torch.randn(4, 16).clamp(-1, 1), Gram(16, "w")
    weight[:, 0] = 6
    x = torch.randn(128, 16)
    x[:, 0] *= 1e-3
    gram.update(x)
    spec = QSpec.parse("int4/channel/sym")
    t = awq.quantize_weight(weight, spec, None, "w", Statistics(gram))
    nearest = rtn.quantize_weight(weight, spec)
    assert float(t.dequantize()[:, 0].max()) < 4
    ours, theirs = (float(output_error(q.dequantize() - weight, gram.matrix).sum()) for q in (t, nearest))
    assert ours < 0.5 * theirs


def test_without_data_nothing_is_searched() -> None:
    with pytest.raises(FewbitError, match=r"my layer.*data"):
        awq.search_scale([torch.ones(2, 4)], [SPEC], Statistics(Gram(4, "w")), None, None, "my layer")


@pytest.mark.parametrize("columns", [40, 600])
def test_half_of_a_symmetric_matrix_tells_the_error(columns: int) -> None:
    x, change = torch.randn(700, columns), torch.randn(5, columns)
    gram = x.T @ x / 700
    assert awq._error_sum(change, gram) == pytest.approx(float(output_error(change, gram.double()).sum()), rel=1e-5)


def test_a_scale_that_cannot_be_the_best_is_left_early_and_changes_nothing() -> None:
    _, seen = inputs(2, outliers=5)
    weights = [torch.randn(300, 32), torch.randn(20, 32)]
    search = awq._Losses(weights, [SPEC, SPEC], seen.gram.matrix.float(), "w")
    least = search.loss(torch.ones(32))
    assert search.loss(torch.logspace(-3, 3, 32)) == float("inf")
    assert search.loss(torch.ones(32)) == least == search.least
    assert len(search.rows) == 4
