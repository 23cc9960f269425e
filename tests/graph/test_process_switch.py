"""What models run without is put back, however many threads run them at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import Any

import pytest
import torch

import alignkit
from alignkit.graph.proof.process_switch import NO_FAKE_TENSOR_LOG, NO_FUSED_ATTENTION, NO_MKLDNN, ProcessSwitch
from alignkit.testing import attention, independent_pair

SWITCHES: dict[str, tuple[ProcessSwitch, Callable[[], Any]]] = {
    "fused attention": (NO_FUSED_ATTENTION, torch.backends.mha.get_fastpath_enabled),
    "mkldnn": (NO_MKLDNN, torch._C._get_mkldnn_enabled),
    "log of fake tensors": (NO_FAKE_TENSOR_LOG, NO_FAKE_TENSOR_LOG._read),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_the_last_thread_puts_back_what_the_first_one_met(name: str) -> None:
    switch, read = SWITCHES[name]
    before, both, first_left = read(), Barrier(2), Event()

    def leave_first() -> None:
        with switch.held():
            both.wait(10)
        first_left.set()

    def leave_last() -> Any:
        with switch.held():
            both.wait(10)
            first_left.wait(10)
            return read()

    with ThreadPoolExecutor(2) as pool:
        done, inside = pool.submit(leave_first), pool.submit(leave_last)
        done.result()
        assert inside.result() != before
    assert read() == before


@pytest.mark.parametrize("name", SWITCHES)
def test_an_error_inside_puts_it_back(name: str) -> None:
    switch, read = SWITCHES[name]
    before = read()
    with pytest.raises(KeyError), switch.held(), switch.held():
        raise KeyError
    assert read() == before


def test_traces_and_solves_in_threads_leave_torch_as_it_was() -> None:
    before = {name: read() for name, (_, read) in SWITCHES.items()}
    start = Barrier(4)

    def work(seed: int) -> dict[str, Any]:
        pair = independent_pair(attention(), seed=0)
        inputs = pair.architecture.inputs(32)
        task = alignkit.Task(pair.a, (inputs, torch.zeros(32)), "mse")
        start.wait(30)
        alignkit.trace(pair.b, inputs[:2])
        return dict(alignkit.solve(pair.bind(), solver="activation_matching", task=task).alignment.elements)

    with ThreadPoolExecutor(4) as pool:
        alignments = list(pool.map(work, range(4)))
    for other in alignments[1:]:
        assert all(torch.equal(alignments[0][group], order) for group, order in other.items())
    assert {name: read() for name, (_, read) in SWITCHES.items()} == before
