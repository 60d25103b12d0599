"""Forward passes of many windows that wait for each other in front of layers that are not quantized yet.

Each window runs in a thread of its own, of which only so many run at a time. A gate stands in a layer's place: it tells
which input met it and waits until the layer is quantized, so that a block runs once however many of its layers need
statistics, and every layer sees what the quantized ones before it put out.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewbit.kernels.side_by_side import Slots, on_one_thread
from fewbit.sequential import capture
from fewbit.sequential.forward import computing


class Gate(capture.Stand):
    """In the place of a layer.

    Args:
        layer: The layer, whose attributes the model may ask for.
        arrive: Called with an input while there is no quantized layer; may wait for it, or raise. Where it does
            neither, the float layer computes.
    """

    def __init__(self, layer: nn.Module, arrive: Callable[[Tensor], None]) -> None:
        super().__init__(layer)
        object.__setattr__(self, "after", None)
        object.__setattr__(self, "arrive", arrive)

    def put(self, after: nn.Module) -> None:
        """From now on compute with this layer, and be it: the float one's memory is not kept."""
        object.__setattr__(self, "after", after)
        object.__setattr__(self, "_block", after)

    def forward(self, x: Tensor) -> Any:
        """What the quantized layer makes of an input."""
        if self.after is None:
            self.arrive(x)
        return self._block(x) if self.after is None else self.after(x)


class Rehearsal(capture.Stand):
    """In the place of a module whose layers are quantized together: it may run once in float to show what they see.

    Args:
        module: The module.
        call: Called with what runs it on the arguments that came, and returns what that does.
    """

    def __init__(self, module: nn.Module, call: Callable[[Callable[[], Any]], Any]) -> None:
        super().__init__(module)
        object.__setattr__(self, "call", call)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module makes of its arguments."""
        return self.call(partial(self._block, *args, **kwargs))


class Crew:
    """Threads that run windows and wait at gates; a context, at whose end none is left.

    Args:
        windows: Their numbers.
        run: Makes a window's output; called without gradients.
        compute: The type of the passes.
        threads: Windows that run at a time.
    """

    def __init__(self, windows: Sequence[int], run: Callable[[int], Tensor], compute: str, threads: int) -> None:
        self.waiting: dict[int, tuple[int, Mapping[int, Tensor]]] = {}
        self._outputs: dict[int, Tensor] = {}
        self._errors: dict[int, Exception] = {}
        self._run, self._compute = run, compute
        self._slots, self._changed = Slots(threads), threading.Condition()
        self._others = torch.get_num_threads()
        self._doors: defaultdict[int, threading.Event] = defaultdict(threading.Event)  # one wakes few threads
        self._closed, self._busy, self._local = False, len(windows), threading.local()
        self._threads = [threading.Thread(target=self._work, args=(window,), daemon=True) for window in windows]

    def __enter__(self) -> Self:
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:  # Ctrl-C: those that run already would wait for good
            self._go_home()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._go_home()

    def _go_home(self) -> None:
        with self._changed:
            self._closed = True
            for door in self._doors.values():
                door.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def settle(self) -> None:
        """Wait until every window waits at a gate or is done.

        Raises:
            Exception: What a window raised, the first one's.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._busy == 0)
        if self._errors:
            raise self._errors[min(self._errors)]

    def outputs(self) -> dict[int, Tensor]:
        """What the windows that are done since the last time put out."""
        with self._changed:
            done, self._outputs = self._outputs, {}
        return done

    def open(self, number: int) -> None:
        """Let those pass that wait at the gates of this number, and those to come."""
        with self._changed:
            for window in [window for window, (at, _) in self.waiting.items() if at == number]:
                del self.waiting[window]
                self._busy += 1
            self._doors[number].set()

    def arrive(self, number: int, inputs: Mapping[int, Tensor]) -> None:
        """Called by gates: wait until they are open.

        Args:
            number: Of the gates that open together.
            inputs: What to show meanwhile.

        Raises:
            Stop: The crew is sent home.
        """
        with self._changed:
            door = self._doors[number]
            waits = not (door.is_set() or self._closed)
            if waits:
                self.waiting[self._local.window] = (number, inputs)
                self._rests()
        if waits:
            self._slots.give()
            door.wait()
            self._slots.take()
        if self._closed:
            raise capture.Stop

    def _work(self, window: int) -> None:
        self._local.window = window
        on_one_thread(self._others)  # see fewbit.sequential.forward
        self._slots.take()
        try:
            if not self._closed:
                with torch.no_grad(), computing(self._compute):
                    self._outputs[window] = self._run(window)
        except capture.Stop:
            pass
        except Exception as error:  # noqa: BLE001 - whatever it is, settle raises it in the main thread
            self._errors[window] = error
        finally:
            self._slots.give()
        with self._changed:
            self._rests()

    def _rests(self) -> None:
        self._busy -= 1
        if self._busy == 0:
            self._changed.notify_all()
