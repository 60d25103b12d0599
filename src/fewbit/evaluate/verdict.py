"""Whether anything is left of a model after quantizing: its outputs on one batch against the float model's.

An output whose error is about as large as itself is worth a warning, as is one that no longer changes with the input:
a large constant part makes its SQNR look well. The layer where that begins is worth a name. Layers are compared channel
by channel, each against its best fit: ``1 - r²``, the share of a channel's variance that the quantized one does not
explain. Factors that equalization moves between layers and a folded batch norm's do not count then, and a channel that
is a million times wider than its neighbours does not hide that they are gone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.errors import FewbitWarning
from fewbit.evaluate.error import SignalNoise

#: dB of an output; below, more than half of its energy is error.
LEAST = 3.0
#: dB of what changes from sample to sample; an output that no longer changes is at 0.
LEAST_VARYING = 1.0
#: dB of a float model's output against itself in another run; below, it draws random numbers or keeps state.
ITSELF = 20.0
_MASK = 1e3  # times the largest value that differs at all
_SAME = 1e-10  # samples whose outputs differ by less of the energy are the same one but for rounding
_LOST = 0.5  # of a layer's variance
_CHANNELS, _VALUES = 1024, 4096  # of a layer's output, at most


@dataclass(frozen=True)
class Kept:
    """What is left of one output.

    Attributes:
        sqnr: dB over all values; NaN where only the quantized model's are not finite.
        varying: dB of what changes from sample to sample (first axis); None where nothing does.
    """

    sqnr: float
    varying: float | None = None

    @property
    def enough(self) -> bool:
        """Whether there is nothing to warn of."""
        return self.sqnr >= LEAST and (self.varying is None or self.varying >= LEAST_VARYING)

    @property
    def repeated(self) -> bool:
        """Whether a model that gives this for its own outputs gives the same ones every time."""
        return self.sqnr >= ITSELF and (self.varying is None or self.varying >= ITSELF)

    def __str__(self) -> str:
        """The state, as part of a sentence."""
        if math.isnan(self.sqnr):
            return "is not finite"
        if self.sqnr < LEAST:
            return f"is at an SQNR of {_db(self.sqnr)}"
        return f"is at {_db(self.varying or 0)} in what changes from sample to sample"


def _db(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f} dB"  # + 0.0: no -0.0


def kept(reference: Mapping[str, Tensor], measured: Mapping[str, Tensor]) -> dict[str, Kept]:
    """What is left of every output that both have in one shape ``[samples, ...]``.

    Masks do not count: values that are not finite in the reference itself, or the same in both and far beyond all that
    differ. Nor do outputs that are all 0 there.
    """
    found = {}
    for name, before in reference.items():
        after = measured.get(name)
        if after is None or after.shape != before.shape or not before.numel():
            continue
        counted = before.isfinite() & ~_masked(before, after)
        x, y = before.float().where(counted, 0), after.float().where(counted, 0)
        energies = SignalNoise()
        energies.add(x, y)
        if energies.signal > 0:
            found[name] = Kept(energies.sqnr, None if math.isnan(energies.sqnr) else _varying(x, y, energies))
    return found


def _masked(before: Tensor, after: Tensor) -> Tensor:
    """Where both hold the same value, a thousand times larger than any that changed (-1e9, say)."""
    same = before == after
    changed = before.abs().where(~same & before.isfinite(), 0).max()
    return same & (before.abs() > _MASK * changed) if changed > 0 else torch.zeros_like(same)


def _varying(reference: Tensor, measured: Tensor, energies: SignalNoise) -> float | None:
    """Of what is left without the mean over samples, on both sides: a constant shift takes nothing of it away."""
    if reference.dim() < 2 or reference.shape[0] < 2:
        return None
    varying, error = (_centred(x) for x in (reference, measured - reference))
    signal = float(varying.square().sum(dtype=torch.float64))
    if signal <= _SAME * energies.signal:
        return None
    return SignalNoise(signal, float(error.square().sum(dtype=torch.float64)), energies.count).sqnr


def _centred(samples: Tensor) -> Tensor:
    return samples - samples.mean(0, keepdim=True)


def thinned(values: Tensor, axis: int) -> Tensor:
    """A copy of some of a layer's values, ``[channels, values]``, the same ones of equal shapes."""
    if values.dim() == 0:
        return values.detach().float().reshape(1, 1).clone()
    rows = values.detach().movedim(axis, 0)
    rows = rows[:: math.ceil(rows.shape[0] / _CHANNELS) or 1]
    rows = rows.flatten(1) if rows.dim() > 1 else rows.unsqueeze(1)
    return rows[:, :: math.ceil(rows.shape[1] / _VALUES) or 1].float().clone()


def unexplained(reference: Tensor, measured: Tensor) -> float | None:
    """``1 - r²`` on average over channels.

    Args:
        reference: ``[channels, values]``.
        measured: Alike.

    Returns:
        0 (each channel is the reference's but for a factor and an offset) to 1 (nothing of it is left); 1 for what is
        not finite; None where no channel of the reference varies.
    """
    x, y = (t.double() - t.double().mean(1, keepdim=True) for t in (reference, measured))
    power = x.square().sum(1)
    varies = power > 0
    if not bool(varies.any()):
        return None
    cross, own = (x * y).sum(1)[varies].square(), (power * y.square().sum(1))[varies]
    explained = torch.where(own > 0, cross / own.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return float((1 - explained).clamp(0, 1).nan_to_num(1.0).mean())


def first_lost(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> str | None:
    """The first layer of which less than half is left.

    Args:
        pairs: Layers' float and quantized outputs, :func:`thinned`, in the model's order.
    """
    for name, (reference, measured) in pairs.items():
        share = unexplained(reference, measured) if reference.shape == measured.shape else None
        if share is not None and share > _LOST:
            return name
    return None


def warning(
    found: Mapping[str, Kept], itself: Callable[[], Mapping[str, Kept]], blame: Callable[[], str | None]
) -> str | None:
    """One sentence for the user about a model's outputs, or None if they are as they should be.

    Args:
        found: By output.
        itself: What is left of the float model's outputs when it runs again: what it does not repeat tells nothing of
            the quantized model. Called only where there is something to tell, as is ``blame``.
        blame: Finds the layer.
    """
    bad = {name: one for name, one in found.items() if not one.enough}
    if bad:
        again = itself()
        bad = {name: one for name, one in bad.items() if name not in again or again[name].repeated}
    if not bad:
        return None
    worst = min(bad, key=lambda name: -math.inf if math.isnan(bad[name].sqnr) else bad[name].sqnr)
    others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    layer = blame()
    where = "" if layer is None else f"; little is left of the output of {layer} and behind it"
    skipped = "layers" if layer is None else "that layer"
    return (
        f"output {worst!r}{others} of the quantized model {bad[worst]} against the float model on the first "
        f"calibration batch, so hardly of use{where}: check that the data is prepared as the model expects, then try "
        f"a recipe with more bits, a rule that skips {skipped}, another calibrator, or an algorithm such as "
        "equalize+gptq"
    )


def warn(sentence: str) -> None:
    """Tell a Python user; the command line shows it on stderr."""
    warnings.warn(sentence, FewbitWarning, stacklevel=4)
