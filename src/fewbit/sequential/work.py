"""What a run of the sequential pipeline carries along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from fewbit.calibrate.collect import Progress
from fewbit.recipe import LayerPlan
from fewbit.sequential import capture, tree
from fewbit.sequential.hidden import HiddenStates
from fewbit.sequential.ranks import Ranks
from fewbit.sequential.solve import Settings
from fewbit.sequential.spare import Spare
from fewbit.sequential.trim import trim
from fewbit.sequential.windows import Window


class Store(Protocol):
    """Where blocks come from and go to: a model in memory, or a checkpoint and the files made of it."""

    model: nn.Module

    def load(self, name: str, compute: str) -> None:
        """Give a block its float weights, for passes that compute in that type."""

    def unload(self, name: str) -> None:
        """Take them away again."""

    def finished(self, name: str) -> bool:
        """Whether an earlier run finished the block."""

    def release(self, name: str, notes: Sequence[str]) -> None:
        """A block is quantized, and the states behind it are stored."""


@dataclass(frozen=True)
class Passed:
    """A stack that ran: its blocks, the form in which they return, and the states behind it."""

    blocks: tuple[str, ...]
    form: Any
    states: HiddenStates


@dataclass
class Work:
    """One run over the blocks of a model.

    Attributes:
        store: The model's two ends.
        windows: The calibration data.
        settings: How layers are quantized.
        plans: For every layer, those left in float included.
        generic: Whether the model has no table, so that shared inputs have to be seen.
        ranks: The processes.
        memory: Bytes for hidden states and for sums that wait; None for no limit.
        folder: Where they go beyond it, and where hidden states outlive the process; needed with a limit.
        progress: Called with (stage, steps done, steps in all).
        threads: Windows at a time; None for as many as torch has threads.
        passed: The stacks that ran.
        notes: Sentences for the user, of blocks, whose records hold them as well.
        whole: Sentences on the whole run.
        spare: Matrices that are done with; used where memory is not bounded.
    """

    store: Store
    windows: Sequence[Window]
    settings: Settings
    plans: Sequence[LayerPlan]
    generic: bool = False
    ranks: Ranks = field(default_factory=Ranks.current)
    memory: int | None = None
    folder: Path | None = None
    progress: Progress | None = None
    threads: int | None = None
    passed: list[Passed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    spare: Spare = field(default_factory=Spare)
    _steps: int = 0
    _total: int = 0
    _blocks: int = 0
    _blocks_left: int = 0
    _stage: str = "blocks"

    @property
    def compute(self) -> str:
        """The type of forward passes."""
        return self.settings.forward

    def planned(self, block: str) -> list[LayerPlan]:
        """The layers of a block that are quantized."""
        return [plan for plan in self.plans if plan.scheme is not None and plan.name.startswith(f"{block}.")]

    @property
    def leaves(self) -> list[tuple[int, range]]:
        """The leaves of the tree that this process computes: number and windows."""
        cut = tree.leaves(len(self.windows))
        return [(number, cut[number]) for number in tree.share(len(cut), self.ranks.rank, self.ranks.size)]

    @property
    def mine(self) -> list[int]:
        """The windows of this process."""
        return [window for _, leaf in self.leaves for window in leaf]

    def behind(self, window: int) -> list[capture.Finished]:
        """The stacks that ran, with what they put out on a window."""
        return [capture.Finished(each.blocks, each.form, each.states.get(window)) for each in self.passed]

    def states(self, name: str) -> HiddenStates:
        """Room for the hidden states at one place of the model."""
        folder = None if self.folder is None else self.folder / "hidden" / name
        return HiddenStates(None if self.memory is None else self.memory // 4, folder)

    def trim(self) -> None:
        """Give freed memory back where memory is bounded; else to keep it is faster."""
        if self.folder is not None:
            trim()

    def begin(self, left: int, before: int) -> None:
        """So many blocks are to be done, beside those that an earlier run finished."""
        self._blocks_left = left
        self._stage = f"blocks ({before} were done before)" if before else "blocks"
        self._tell(self._stage, 0, left)

    def block_done(self) -> None:
        """Tell of a block that is done."""
        self._blocks += 1
        self._tell(self._stage, self._blocks, self._blocks_left)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None and total:
            self.progress(stage, done, total)

    def expect(self, steps: int) -> None:
        """So many more steps are to be done."""
        self._total += steps

    def step(self, steps: int = 1) -> None:
        """Tell of forward passes that are done."""
        self._steps += steps
        if steps:
            self._tell("forward passes", self._steps, self._total)
