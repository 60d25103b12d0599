"""Every calibrator there is, held to what all of them promise; a new file in the package is found by itself."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewbit import calibrate
from fewbit.calibrate.range import Range
from fewbit.calibrate.statistic import Statistic, dense_parts
from fewbit.errors import FewbitError
from fewbit.numbers.affine import quantize, scale_and_zero_point
from fewbit.numbers.spec import QSpec

CALIBRATORS = {name: calibrate.get(name) for name in calibrate.names()}
SPECS = [
    f"{fmt}/{grain}/{symmetry}"
    for grain in ("tensor", "channel", "channel1", "g3", "g8", "token")
    for fmt, symmetry in (("int8", "sym"), ("uint8", "asym"), ("int4", "asym"), ("int2", "sym"))
]
DEGENERATE = {
    "constant": torch.full((4, 6), 2.5),
    "one value": torch.tensor([[-3.0]]),
    "negative": -torch.rand(4, 6, generator=torch.Generator().manual_seed(0)) - 1,
    "zeros": torch.zeros(4, 6),
    "zeros and one": torch.eye(4, 6),
    "two levels": torch.tensor([[-1.0, 1.0] * 8]),
    "one huge": torch.tensor([[0.1, -0.2, 0.3, 1e38]]),
    "huge": torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * 1e38 / 4,
    "small": torch.randn(4, 6, generator=torch.Generator().manual_seed(2)) * 1e-30,
    "subnormal": torch.tensor([[1e-40, -3e-41, 1e-45, 0.0]]),
    "far from zero": 1000 + torch.rand(4, 6, generator=torch.Generator().manual_seed(3)),
}


@pytest.fixture(params=list(CALIBRATORS))
def calibrator(request: pytest.FixtureRequest) -> ModuleType:
    return CALIBRATORS[request.param]


def stream(calibrator: ModuleType, batches: list[Tensor], spec: QSpec) -> tuple[Statistic, Range]:
    options = calibrator.Options()
    statistic = calibrator.new_statistic(spec.granularity, options)
    for batch in batches:
        statistic.update(batch)
    return statistic, calibrator.solve(statistic, spec, options)


def refusal(calibrator: ModuleType, spec: QSpec) -> str | None:
    """What it says where it cannot serve the spec."""
    try:
        stream(calibrator, [torch.ones(4, 6)], spec)
    except FewbitError as error:
        return str(error)
    return None


def state(statistic: Statistic) -> dict[str, Any]:
    return dict(vars(statistic))


def size(statistic: Statistic) -> int:
    return sum(v.numel() * v.element_size() for v in vars(statistic).values() if isinstance(v, Tensor))


def extremes(x: Tensor, spec: QSpec) -> tuple[Tensor, Tensor]:
    shape = spec.granularity.scale_shape(tuple(x.shape))
    low, high = torch.empty(torch.Size(shape).numel()), torch.empty(torch.Size(shape).numel())
    for rows, values in dense_parts(x, spec.granularity):
        low[rows], high[rows] = values.amin(1), values.amax(1)
    return low.reshape(shape), high.reshape(shape)


def check_range(found: Range, x: Tensor, spec: QSpec) -> None:
    """float32, one entry a block, never beyond the data, 0 inside, and of use to the affine map."""
    low, high = extremes(x, spec)
    assert found.lo.dtype == found.hi.dtype == torch.float32
    assert found.lo.shape == found.hi.shape == low.shape
    if spec.symmetric:
        assert torch.equal(found.lo, -found.hi)
        assert (found.hi <= torch.maximum(low.abs(), high.abs())).all()
    else:
        assert (found.lo >= low.clamp(max=0)).all()
        assert (found.hi <= high.clamp(min=0)).all()
    assert ((found.lo <= 0) & (found.hi >= 0)).all()


def close(a: Range, b: Range, x: Tensor, *, exact: bool) -> bool:
    tolerance = 0.0 if exact else 1e-6 * x.abs().max().item()
    return all(torch.allclose(p, q, rtol=0.0, atol=tolerance) for p, q in ((a.lo, b.lo), (a.hi, b.hi)))


def test_the_module_has_what_a_calibrator_is_made_of(calibrator: ModuleType) -> None:
    assert calibrator.__doc__
    assert is_dataclass(calibrator.Options)
    options = calibrator.Options()
    with pytest.raises((AttributeError, TypeError)):  # frozen
        options.anything = 1
    assert isinstance(calibrator.statistic_key(options), Hashable)
    assert hash(options) == hash(calibrator.Options())
    statistic = calibrator.new_statistic(QSpec.parse("int8/tensor/sym").granularity, options, "conv1")
    assert statistic.name == "conv1"
    assert type(statistic).promise in ("exact", "rounded", "ordered")
    assert all(field.type is not None for field in fields(calibrator.Options))


def test_equal_keys_mean_one_kind_of_statistic() -> None:
    kinds: dict[Hashable, tuple[type, object]] = {}
    for calibrator in CALIBRATORS.values():
        options = calibrator.Options()
        statistic = calibrator.new_statistic(QSpec.parse("int8/tensor/sym").granularity, options)
        kind = (type(statistic), statistic._settings())
        assert kinds.setdefault(calibrator.statistic_key(options), kind) == kind
    assert len(kinds) < len(CALIBRATORS)  # sharing does happen


@pytest.mark.parametrize("spec", SPECS)
def test_every_granularity_and_symmetry(calibrator: ModuleType, spec: str) -> None:
    parsed = QSpec.parse(spec)
    if (sentence := refusal(calibrator, parsed)) is not None:
        assert "use mse or minmax" in sentence
        with pytest.raises(FewbitError, match="use mse or minmax"):
            calibrate.solve_tensor(calibrator, torch.ones(4, 6), parsed)
        return
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 10, generator=generator) * scale for scale in (0.1, 3.0, 1.0)]
    together = torch.cat(batches) if parsed.granularity.scale_shape((4, 10)) == () else torch.cat(batches, 1)
    _, streamed = stream(calibrator, batches, parsed)
    low = torch.stack([extremes(batch, parsed)[0] for batch in batches]).amin(0)
    high = torch.stack([extremes(batch, parsed)[1] for batch in batches]).amax(0)
    assert streamed.lo.shape == low.shape
    bound = torch.maximum(low.abs(), high.abs()) if parsed.symmetric else high.clamp(min=0)
    assert (streamed.hi <= bound).all()
    check_range(calibrate.solve_tensor(calibrator, together, parsed), together, parsed)
    found = calibrate.solve_tensor(calibrator, batches[1], parsed)
    check_range(found, batches[1], parsed)
    scale, zero_point = scale_and_zero_point(found.lo, found.hi, parsed)
    quantize(batches[1], parsed, scale=scale, zero_point=zero_point)


@pytest.mark.parametrize("spec", ["int8/tensor/sym", "uint8/tensor/asym", "int4/channel/asym"])
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_data(calibrator: ModuleType, kind: str, spec: str) -> None:
    x, parsed = DEGENERATE[kind], QSpec.parse(spec)
    _, streamed = stream(calibrator, [x, x], parsed)
    check_range(streamed, x, parsed)
    check_range(calibrate.solve_tensor(calibrator, x, parsed), x, parsed)


def test_a_block_of_zeros_has_no_range_and_disturbs_no_other(calibrator: ModuleType) -> None:
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(4))
    x[1] = 0
    for spec in (QSpec.parse("int8/channel/sym"), QSpec.parse("uint8/channel/asym")):
        for found in (stream(calibrator, [x], spec)[1], calibrate.solve_tensor(calibrator, x, spec)):
            assert found.lo[1] == found.hi[1] == 0
            alone = calibrate.solve_tensor(calibrator, x[[2]], spec)
            assert found.hi[2] == pytest.approx(alone.hi[0].item(), rel=0.05)


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(sorted(CALIBRATORS)),
    st.sampled_from(["int8/tensor/sym", "uint8/tensor/asym", "uint4/tensor/asym"]),
    st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8), min_size=1, max_size=6),
)
def test_batches_are_one_update_of_everything(name: str, spec: str, values: list[list[float]]) -> None:
    calibrator, parsed = CALIBRATORS[name], QSpec.parse(spec)
    batches = [torch.tensor([v if abs(v) > 1e-6 else 0.0 for v in batch]) for batch in values]
    together = torch.cat(batches)
    statistic, streamed = stream(calibrator, batches, parsed)
    check_range(streamed, together, parsed)
    assert statistic.count == together.numel()
    if statistic.promise != "ordered":
        _, at_once = stream(calibrator, [together], parsed)
        _, backwards = stream(calibrator, batches[::-1], parsed)
        exact = statistic.promise == "exact"
        assert close(streamed, at_once, together, exact=exact)
        assert close(streamed, backwards, together, exact=exact)


@pytest.mark.parametrize("spec", ["uint8/tensor/asym", "int8/channel/sym"])
def test_any_tree_of_merges(calibrator: ModuleType, spec: str) -> None:
    parsed, options = QSpec.parse(spec), calibrator.Options()
    generator = torch.Generator().manual_seed(5)
    batches = [torch.randn(3, 50, generator=generator) * 4.0**i for i in (0, -2, 1, 3, -1, 2)]
    parts = []
    for batch in batches:
        parts.append(calibrator.new_statistic(parsed.granularity, options))
        parts[-1].update(batch)
    a, b, c, d, e, f = parts
    statistic, expected = stream(calibrator, batches, parsed)
    trees = [
        a.merge(b).merge(c).merge(d).merge(e).merge(f),
        a.merge(b.merge(c.merge(d.merge(e.merge(f))))),
        a.merge(b).merge(c.merge(d)).merge(e.merge(f)),
    ]
    if statistic.promise != "ordered":
        trees.append(f.merge(d).merge(b.merge(a.merge(e))).merge(c))
    for tree in trees:
        found = calibrator.solve(tree, parsed, options)
        assert close(found, expected, torch.cat(batches), exact=statistic.promise == "exact")
        assert tree.count == statistic.count
        if statistic.promise == "exact":
            for key, value in state(statistic).items():
                same = torch.equal(value, state(tree)[key]) if isinstance(value, Tensor) else value == state(tree)[key]
                assert same, key


def test_memory_is_bounded(calibrator: ModuleType) -> None:
    spec = QSpec.parse("uint8/tensor/asym")
    statistic, _ = stream(calibrator, [torch.ones(10)], spec)
    before = size(statistic)
    for i in range(30):
        statistic.update(torch.full((1000 + i,), 1.7**i))
    assert size(statistic) == before <= 1 << 20


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name_and_leaves_no_trace(calibrator: ModuleType, bad: float) -> None:
    spec = QSpec.parse("uint8/tensor/asym")
    statistic = calibrator.new_statistic(spec.granularity, calibrator.Options(), "layer3.conv")
    statistic.update(torch.tensor([1.0, 2.0]))
    before = copy.deepcopy(state(statistic))
    with pytest.raises(FewbitError, match=r"layer3\.conv holds (NaN|infinity)"):
        statistic.update(torch.tensor([5.0, bad, -1.0]))
    for key, value in before.items():
        assert (
            torch.equal(value, state(statistic)[key]) if isinstance(value, Tensor) else value == state(statistic)[key]
        )
    with pytest.raises(FewbitError, match=r"layer3\.conv holds"):
        calibrate.solve_tensor(calibrator, torch.tensor([5.0, bad]), spec, name="layer3.conv")


def test_nothing_to_calibrate_on_is_refused(calibrator: ModuleType) -> None:
    spec, options = QSpec.parse("uint8/tensor/asym"), calibrator.Options()
    statistic = calibrator.new_statistic(spec.granularity, options, "fc")
    with pytest.raises(FewbitError, match="fc saw no calibration data"):
        calibrator.solve(statistic, spec, options)
    for x in (torch.empty(0, 3), torch.arange(3)):
        with pytest.raises(FewbitError, match="fc"):
            statistic.update(x)
        with pytest.raises(FewbitError, match="fc"):
            calibrate.solve_tensor(calibrator, x, spec, name="fc")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_count_as_their_float32_value(calibrator: ModuleType, dtype: torch.dtype) -> None:
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(6)).to(dtype)
    for spec in (QSpec.parse("int8/channel/sym"), QSpec.parse("uint8/tensor/asym")):
        narrow, wide = stream(calibrator, [x], spec)[1], stream(calibrator, [x.float()], spec)[1]
        assert close(narrow, wide, x, exact=True)
        assert close(
            calibrate.solve_tensor(calibrator, x, spec),
            calibrate.solve_tensor(calibrator, x.float(), spec),
            x,
            exact=True,
        )


def test_the_data_is_left_alone_and_may_need_gradients_or_strides(calibrator: ModuleType) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(7))
    spec = QSpec.parse("int8/tensor/sym")
    strided = x.clone().t()[::2].requires_grad_()
    _, found = stream(calibrator, [strided], spec)
    assert close(found, stream(calibrator, [strided.detach().contiguous()], spec)[1], x, exact=False)
    assert torch.equal(strided.detach(), x.t()[::2])
    assert not found.hi.requires_grad


def test_solving_twice_gives_the_same_bits_and_changes_nothing(calibrator: ModuleType) -> None:
    spec = QSpec.parse("uint8/tensor/asym")
    statistic, first = stream(calibrator, [torch.randn(1000, generator=torch.Generator().manual_seed(8))], spec)
    before = copy.deepcopy(state(statistic))
    second = calibrator.solve(statistic, spec, calibrator.Options())
    assert torch.equal(first.lo, second.lo)
    assert torch.equal(first.hi, second.hi)
    for key, value in before.items():
        assert (
            torch.equal(value, state(statistic)[key]) if isinstance(value, Tensor) else value == state(statistic)[key]
        )
