"""GPTQ against an independent one, against rounding to nearest, and in its corners."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms import gptq, rtn
from fewbit.calibrate.gram import Gram, Statistics, output_error
from fewbit.errors import FewbitError
from fewbit.numbers import affine
from fewbit.numbers.spec import QSpec

PLAIN = gptq.Options(order="given", static_groups=True, clips=1, finalists=1, sweeps=0)


def inputs(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    return torch.randn(rows, columns, generator=generator) @ mix * torch.rand(columns, generator=generator).add(0.05)


def statistics(x: torch.Tensor) -> Statistics:
    gram = Gram(x.shape[1], "w")
    gram.update(x)
    return Statistics(gram)


def error(weight: torch.Tensor, t, seen: Statistics) -> float:
    return float(output_error(t.dequantize() - weight, seen.gram.matrix).sum())


def paper(weight: np.ndarray, gram: np.ndarray, scale: np.ndarray, damping: float) -> np.ndarray:
    """Algorithm 1 of arXiv 2210.17323 as it is printed, without blocks: the inverse Hessian's upper Cholesky factor."""
    hessian = gram + damping * gram.diagonal().mean() * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left, codes = weight.copy(), np.zeros_like(weight)
    for j in range(weight.shape[1]):
        codes[:, j] = np.clip(np.round(left[:, j] / scale[:, j]), -8, 7)
        lost = (left[:, j] - scale[:, j] * codes[:, j]) / upper[j, j]
        left[:, j:] -= lost[:, None] * upper[j, j:]
    return codes


@pytest.mark.parametrize("block", [1, 7, 64])
def test_it_is_the_algorithm_of_the_paper(block: int) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(10, 48), inputs(400, 48)
    seen = statistics(x)
    options = gptq.Options("given", True, 0.01, block, 1, 1, 0)
    columns, factor = gptq._factorized(seen.gram.matrix, 48, options, "w")
    found = gptq._solve(weight, factor, columns, QSpec.parse("int4/channel/sym"), 48, options)
    scale = (weight.abs().amax(1) / 7)[:, None].expand(-1, 48)
    codes = paper(weight.double().numpy(), seen.gram.matrix.numpy(), scale.double().numpy(), 0.01)
    # Where float32 and float64 round a tie apart, the rest of that row follows.
    assert (found.codes.numpy() == codes).all(axis=1).mean() >= 0.9


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(["int4/g16/asym/f16", "int3/g16/sym", "int2/g8/asym", "int4/channel/asym", "int4/tensor/sym",
                     "nf4/g16/sym"]),
    st.sampled_from(gptq._ORDERS),
    st.booleans(),
    st.integers(1, 50),
    st.integers(0, 99),
)  # fmt: skip
def test_it_is_never_worse_than_rounding_to_nearest(text, order, static, columns, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, seen, spec = (
        torch.randn(6, columns, generator=generator),
        statistics(inputs(80, columns, seed)),
        QSpec.parse(text),
    )
    t = gptq.quantize_weight(weight, spec, gptq.Options(order, static), "w", seen)
    for calibrator in ("minmax", "mse"):
        nearest = rtn.quantize_weight(weight, spec, rtn.Options(calibrator))
        assert error(weight, t, seen) <= error(weight, nearest, seen) * (1 + 1e-5)


def test_each_step_beyond_the_paper_helps() -> None:
    torch.manual_seed(0)
    weight, seen, spec = torch.randn(64, 128), statistics(inputs(2000, 128)), QSpec.parse("int3/g32/asym")
    steps = [
        PLAIN,
        gptq.Options(order="given", clips=1, finalists=1, sweeps=0),
        gptq.Options(order="given", sweeps=0),
        gptq.Options(sweeps=0),
        gptq.Options(),
    ]
    nearest = error(weight, rtn.quantize_weight(weight, spec, rtn.Options("minmax")), seen)
    errors = [error(weight, gptq.quantize_weight(weight, spec, o, "w", seen), seen) for o in steps]
    assert errors[0] < 0.7 * nearest
    assert errors[2] < 0.9 * errors[1]
    assert errors[4] < errors[3] < errors[2]


def test_dead_columns_are_rounded_to_nearest_and_harm_nothing() -> None:
    torch.manual_seed(0)
    x = inputs(300, 32)
    x[:, [0, 9, 31]] = 0
    weight, spec = torch.randn(8, 32), QSpec.parse("int4/g16/asym")
    t = gptq.quantize_weight(weight, spec, None, "w", statistics(x))
    nearest = affine.quantize(weight, spec, scale=t.scale, zero_point=t.zero_point)
    assert torch.equal(t.codes[:, [0, 9, 31]], nearest.codes[:, [0, 9, 31]])
    assert not torch.equal(t.codes, nearest.codes)
    nothing = Gram(32, "w")
    nothing.update(torch.zeros(4, 32))
    gptq.quantize_weight(weight, spec, None, "w", Statistics(nothing))


def test_one_window_gives_a_singular_gram_and_a_result_all_the_same() -> None:
    weight, seen = torch.randn(8, 64), statistics(inputs(3, 64))
    t = gptq.quantize_weight(weight, QSpec.parse("int4/g32/sym"), gptq.Options(damping=0.0), "w", seen)
    assert torch.isfinite(t.dequantize()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_computed_in_float32(dtype: torch.dtype) -> None:
    weight, seen, spec = torch.randn(4, 32).to(dtype), statistics(inputs(100, 32)), QSpec.parse("int4/g16/sym")
    t = gptq.quantize_weight(weight, spec, None, "w", seen)
    assert torch.equal(t.codes, gptq.quantize_weight(weight.float(), spec, None, "w", seen).codes)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (gptq.Options(order="random"), "random"),
        (gptq.Options(clips=0), "clips"),
        (gptq.Options(damping=-1.0), "damping"),
    ],
)
def test_wrong_options_are_told(options: gptq.Options, word: str) -> None:
    with pytest.raises(FewbitError, match=word):
        gptq.quantize_weight(torch.randn(4, 8), QSpec.parse("int4/g8/sym"), options, "w", statistics(inputs(9, 8)))


def test_only_matrices() -> None:
    with pytest.raises(FewbitError, match="shape"):
        gptq.quantize_weight(torch.randn(8), QSpec.parse("int4/g8/sym"), None, "w", statistics(inputs(9, 8)))


def test_large_weights_are_rounded_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(10, 32, generator=generator), torch.randn(64, 32, generator=generator)
    gram = Gram(32)
    gram.update(x)
    for spec in ("int4/g16/asym", "int4/channel/sym", "int4/tensor/sym"):
        parsed = QSpec.parse(spec)
        whole = gptq.quantize_weight(weight, parsed, statistics=Statistics(gram))
        with monkeypatch.context() as small:
            small.setattr(gptq, "_VALUES", 4 * 32)
            pieces = gptq.quantize_weight(weight, parsed, statistics=Statistics(gram))
        assert torch.equal(whole.codes, pieces.codes)
        assert torch.equal(whole.scale, pieces.scale)


def test_threads_change_no_bit() -> None:
    weight, seen = torch.randn(150, 320, generator=torch.Generator().manual_seed(2)), statistics(inputs(500, 320))
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(gptq.quantize_weight(weight, QSpec.parse("int4/g64/asym"), statistics=Statistics(seen.gram)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0].codes, other.codes) for other in found)
    assert all(torch.equal(found[0].scale, other.scale) for other in found)


def test_layers_that_share_an_input_share_one_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, asked = statistics(inputs(200, 32)), []
    factorize = gptq._lattice.factorize
    monkeypatch.setattr(gptq._lattice, "factorize", lambda *args: asked.append(1) or factorize(*args))
    weights, spec = [torch.randn(6, 32), torch.randn(4, 32)], QSpec.parse("int4/g16/asym")
    together = [gptq.quantize_weight(weight, spec, None, "w", seen) for weight in weights]
    assert len(asked) == 1
    alone = [gptq.quantize_weight(weight, spec, None, "w", Statistics(seen.gram)) for weight in weights]
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(together, alone))
    gptq.quantize_weight(weights[0], spec, gptq.Options(damping=0.1), "w", seen)
    seen.gram.update(torch.randn(5, 32))
    gptq.quantize_weight(weights[0], spec, None, "w", seen)
    assert len(asked) == 5


def test_rows_given_up_early_are_worse() -> None:
    generator = torch.Generator().manual_seed(1)
    seen = statistics(inputs(700, 600))
    solver = gptq._solver(seen, torch.device("cpu"), 600, 0, gptq.Options(), "w")
    change = torch.randn(40, 600, generator=generator)
    error = solver.error(change)
    factors = torch.linspace(0.2, 3.0, 40)
    left = gptq._near(change, solver, error * factors)
    assert set(range(40)) - set(left.tolist()) <= set((factors < 1).nonzero().flatten().tolist())
    assert not set(left.tolist()) & set((factors < 0.9).nonzero().flatten().tolist())


@pytest.mark.parametrize("columns", [48, 32])
@pytest.mark.parametrize("double_up_to", [0, 4096])
def test_the_sums_are_bit_for_bit_as_they_were(
    monkeypatch: pytest.MonkeyPatch, columns: int, double_up_to: int
) -> None:
    monkeypatch.setattr("fewbit.calibrate.gram._DOUBLE_UP_TO", double_up_to)
    seen = statistics(inputs(200, columns))
    before = seen.gram.total.clone()
    gptq.quantize_weight(torch.randn(8, columns), QSpec.parse("int4/g32/sym"), None, "w", seen)
    assert torch.equal(seen.gram.total, before)
