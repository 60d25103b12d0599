"""Windows wait for each other at gates, and nobody is left waiting."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from fewbit.sequential.gates import Crew, Gate, Rehearsal


def crew_of(layers: list[nn.Linear], windows: int = 5, threads: int = 2) -> tuple[Crew, list[Gate]]:
    gates: list[Gate] = []

    def run(window: int) -> Tensor:
        x = torch.full((1, 4), float(window))
        for gate in gates:
            x = gate(x)
        return x

    crew = Crew(range(windows), run, "float32", threads)
    gates += [Gate(layer, lambda x, n=number: crew.arrive(n, {n: x})) for number, layer in enumerate(layers)]
    return crew, gates


def test_every_window_waits_and_then_computes_with_what_was_put() -> None:
    layers = [nn.Linear(4, 4), nn.Linear(4, 4)]
    crew, gates = crew_of(layers)
    with crew, torch.no_grad():
        for number, layer in enumerate(layers):
            crew.settle()
            assert {window: at for window, (at, _) in crew.waiting.items()} == dict.fromkeys(range(5), number)
            gates[number].put(layer)
            crew.open(number)
        crew.settle()
        outputs = crew.outputs()
        for window in range(5):
            assert torch.equal(outputs[window], layers[1](layers[0](torch.full((1, 4), float(window)))))
        assert not crew.outputs()


def test_a_gate_shows_what_it_stands_for() -> None:
    layer = nn.Linear(4, 4)
    _, gates = crew_of([layer])
    assert gates[0].in_features == 4
    assert gates[0].weight is layer.weight


def test_a_gate_that_nobody_holds_up_computes_in_float() -> None:
    layer, after, seen = nn.Linear(4, 4), nn.Linear(4, 4), []
    gate = Gate(layer, seen.append)
    x = torch.ones(1, 4)
    assert torch.equal(gate(x), layer(x))
    assert seen == [x]
    gate.put(after)
    assert torch.equal(gate(x), after(x))
    assert len(seen) == 1


def test_a_rehearsal_runs_its_module_when_it_is_told_to() -> None:
    layer = nn.Linear(4, 4)
    stand = Rehearsal(layer, lambda run: (run(), run()))
    x = torch.ones(1, 4)
    assert all(torch.equal(each, layer(x)) for each in stand(x))
    assert stand.in_features == 4


def test_a_gate_does_not_keep_the_float_layer() -> None:
    layer, after = nn.Linear(4, 4), nn.Linear(4, 5)
    gone = weakref.ref(layer)
    _, gates = crew_of([layer])
    gates[0].put(after)
    del layer
    gc.collect()
    assert gone() is None
    assert gates[0].out_features == 5


def test_the_first_windows_error_is_told_and_the_others_go_home() -> None:
    before = threading.active_count()

    def run(window: int) -> Tensor:
        if window in (1, 3):
            raise ValueError(f"window {window}")
        crew.arrive(0, torch.zeros(1))
        return torch.zeros(1)

    crew = Crew(range(4), run, "float32", 2)
    with pytest.raises(ValueError, match="window 1"), crew:
        crew.settle()
    assert threading.active_count() == before
    assert not crew.outputs()


def test_an_interrupt_while_threads_start_sends_home_those_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, _ = crew_of([nn.Linear(4, 4)])
    start, started = threading.Thread.start, []

    def third_is_interrupted(self: threading.Thread) -> None:
        if len(started) == 2:
            raise KeyboardInterrupt
        started.append(self)
        start(self)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", third_is_interrupted)
        with pytest.raises(KeyboardInterrupt), crew:
            raise AssertionError("not reached")
    assert len(started) == 2
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.parametrize("interrupted", [False, True])
def test_threads_that_begin_later_have_the_callers_number(interrupted: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        crew, _ = crew_of([nn.Linear(4, 4)])
        with contextlib.suppress(KeyboardInterrupt), crew:
            crew.settle()
            if interrupted:
                raise KeyboardInterrupt
        with ThreadPoolExecutor(1) as fresh:
            assert fresh.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
