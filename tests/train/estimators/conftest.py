"""Random cases in float64, one scale each."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from fewbit.numbers.spec import QSpec


@st.composite
def cases(draw, symmetric=None):
    """(spec, x, g, s, z): values half of which lie outside, away from the ends and from ties."""
    bits = draw(st.integers(2, 8))
    sym = draw(st.booleans()) if symmetric is None else symmetric
    signed = sym or draw(st.booleans())
    spec = QSpec.parse(f"{'' if signed else 'u'}int{bits}/tensor/{'sym' if sym else 'asym'}")
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    s = float(2.0 ** generator.uniform(-4, 3))
    z = 0.0 if sym else float(generator.integers(int(spec.qmin), int(spec.qmax)))
    count = draw(st.integers(1, 60))
    width = spec.qmax - spec.qmin
    steps = generator.uniform(spec.qmin - z - 0.5 * width, spec.qmax - z + 0.5 * width, count)
    steps = np.where(np.abs(steps * 2 - np.rint(steps * 2)) < 1e-3, steps + 0.01, steps)
    return spec, steps * s, generator.normal(size=count), s, z
