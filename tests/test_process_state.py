"""Whatever code of others switches in the process is put back when it returns, and told with its name."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import alignkit
from alignkit import Outcome, Solver, Task, hookimpl, solve
from alignkit.errors import ModelSourceError, PluginWarning, SolverError
from alignkit.models import load_model
from alignkit.plugins import Registry
from alignkit.plugins.plugin_registry import registry as process_registry
from alignkit.process_state import FILTERS, OF_PROCESS, OF_THREAD, RANDOM, kept_state, watched_state
from alignkit.solver import Step
from alignkit.testing import mlp, planted_pair

PAIR = planted_pair(mlp(3, 5, 2)).bind()
INPUTS, TARGETS = torch.randn(8, 3), torch.randn(8, 2)
SWITCHED = {
    "torch's inference mode": lambda: LEFT_OPEN.append(torch.inference_mode()) or LEFT_OPEN[-1].__enter__(),
    "torch's grad mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "the flushing of denormal numbers": lambda: torch.set_flush_denormal(True),
    "torch's autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's autocast on cuda": lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "torch's matmul precision": lambda: torch.set_float32_matmul_precision("high"),
    "torch's anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "torch.backends.cudnn.enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.cudnn.deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "numpy's handling of errors": lambda: np.seterr(all="ignore"),
    "the working folder": lambda: os.chdir("/"),
    "the warnings filters": lambda: warnings.simplefilter("ignore"),
    "torch's random state": lambda: torch.manual_seed(7),
    "numpy's random state": lambda: np.random.seed(7),
    "python's random state": lambda: random.seed(7),
}
LEFT_OPEN = []
EVERY = (*OF_THREAD, *OF_PROCESS, *FILTERS, *RANDOM)


@pytest.fixture(autouse=True)
def unchanged():
    """Fail where a test leaves anything switched, and put it back for the next."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PluginWarning)
        with kept_state(EVERY) as changed:
            yield
    assert changed == []


def test_every_setting_has_a_case():
    assert {setting.name for setting in EVERY} - {"torch's random state on GPUs"} == set(SWITCHED)


def solver_that(do):
    def run(self, problem, report):
        report(Step(1, 0.0))
        do()
        return Outcome(problem.start)

    return type("Mine", (Solver,), {"name": "mine", "solve": run})


@pytest.mark.parametrize("name", SWITCHED)
def test_a_solver(name):
    with pytest.warns(PluginWarning, match=f"solver 'mine', or the task that it ran, changed {name}"):
        solve(PAIR, solver=solver_that(SWITCHED[name]), registry=Registry([]))


@pytest.mark.parametrize("name", SWITCHED)
def test_a_solver_that_fails(name):
    def fails():
        SWITCHED[name]()
        raise ValueError("no")

    with pytest.warns(PluginWarning, match=name), pytest.raises(SolverError, match="no"):
        solve(PAIR, solver=solver_that(fails), registry=Registry([]))


@pytest.mark.parametrize("hook", ["started", "step", "finished"])
@pytest.mark.parametrize("name", SWITCHED)
def test_an_observer(name, hook):
    class Observer:
        pass

    setattr(Observer, f"alignkit_solve_{hook}", hookimpl(lambda self: SWITCHED[name]() and None))
    registry = Registry([])
    registry.register(Observer(), name="odd", package="alignkit-odd 0.3")
    with pytest.warns(PluginWarning, match=rf"observer 'odd' \(alignkit-odd 0\.3\) changed {name}"):
        solve(PAIR, solver=solver_that(lambda: None), registry=registry)
    solve(PAIR, solver=solver_that(lambda: None), registry=registry)  # it is said once


def test_the_state_of_a_solver_is_its_own_while_it_runs():
    """What it switched for itself is not taken back in the middle, when an observer returns."""
    seen = []

    class Observer:
        @hookimpl
        def alignkit_solve_step(self):
            seen.append(torch.get_default_dtype())

    def run(self, problem, report):
        torch.set_default_dtype(torch.float64)
        report(Step(1, 0.0))
        seen.append(torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        return Outcome(problem.start)

    registry = Registry([])
    registry.register(Observer())
    solve(PAIR, solver=type("Mine", (Solver,), {"name": "mine", "solve": run}), registry=registry)
    assert seen == [torch.float64, torch.float64]


SWITCHES = [name for name in SWITCHED if "random" not in name]


@pytest.mark.parametrize("name", SWITCHES)
def test_a_loss_and_a_loader(name):
    def loss(outputs, targets):
        SWITCHED[name]()
        return nn.functional.mse_loss(outputs, targets)

    def load():
        SWITCHED[name]()
        yield INPUTS, TARGETS

    if "grad mode" not in name:  # losses run in a block that puts it back
        with pytest.warns(PluginWarning, match=f"of the task changed {name}"):
            Task(PAIR.module_a, (INPUTS, TARGETS), loss).evaluate(PAIR.module_b)
    with pytest.warns(PluginWarning, match=f"the loader of a task changed {name}"):
        Task(PAIR.module_a, load(), "mse").evaluate(PAIR.module_b)


def test_a_loader_that_draws_random_numbers_is_not_held_against_the_solver():
    """Nor is its state put back: two loaders that shuffle would shuffle alike."""
    dataset = torch.utils.data.TensorDataset(INPUTS, TARGETS)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, shuffle=True)
    state = torch.get_rng_state()
    solve(PAIR, solver="activation_matching", task=Task(PAIR.module_a, loader, "mse"), registry=Registry([]))
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in SWITCHES if "filters" not in name])
def test_a_model_source_and_a_hook_that_offers(name):
    class Sources:
        @hookimpl
        def alignkit_register_model_sources(self):
            return {"hub": lambda text: (SWITCHED[name](), (nn.Identity(), (), {}))[1]}

    class Offers:
        @hookimpl
        def alignkit_register_solvers(self):
            SWITCHED[name]()
            return []

    with alignkit.plugins.watched(Sources()), pytest.warns(PluginWarning, match=f"source 'hub' changed {name}"):
        load_model("hub:x")
    registry = Registry([])
    registry.register(Offers(), name="odd")
    with pytest.warns(PluginWarning, match=rf"plugin 'odd' \(registered by hand\).* changed {name}"):
        registry.solvers()


def test_a_model_source_that_exits_is_an_error():
    class Sources:
        @hookimpl
        def alignkit_register_model_sources(self):
            return {"hub": exit}

    with alignkit.plugins.watched(Sources()), pytest.raises(ModelSourceError, match="'hub' failed: SystemExit"):
        load_model("hub:x")


@pytest.mark.parametrize("name", SWITCHED)
def test_a_trace_rule(name):
    registry = Registry([])

    class Rules:
        @hookimpl
        def alignkit_register_trace_rules(self):
            return {"mylib::fold": lambda call: SWITCHED[name]() and None}

    registry.register(Rules(), package="alignkit-odd 0.3")
    rule = registry.trace_rules()["mylib::fold"]
    with pytest.warns(PluginWarning, match=rf"rule for 'mylib::fold' \(alignkit-odd 0\.3\) changed {name}"):
        rule(None)


def test_a_plugin_that_is_imported(tmp_path, monkeypatch):
    from importlib.metadata import EntryPoint

    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "switching.py").write_text("import torch\ntorch.set_default_dtype(torch.float64)\n")
    with pytest.warns(PluginWarning) as caught:
        Registry([EntryPoint("odd", "switching", "alignkit")])
    assert any(
        "plugin 'odd' (switching), while it was imported, changed torch's default dtype" in str(w.message)
        for w in caught
    )


def test_two_threads_leave_the_setting_that_both_met():
    """The second begins while the first has switched it, and ends last."""
    switched, begun, ended = (threading.Event() for _ in range(3))

    def first():
        with kept_state(OF_PROCESS):
            torch.set_default_dtype(torch.float64)
            switched.set()
            begun.wait(10)
        ended.set()

    def second():
        switched.wait(10)
        with kept_state(OF_PROCESS):
            begun.set()
            ended.wait(10)

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_default_dtype() == torch.float32


def test_a_thread_that_catches_warnings_is_not_held_against_another():
    inside, caught = threading.Event(), threading.Event()
    changed = []

    def run():
        with kept_state() as names:
            inside.set()
            caught.wait(10)
        changed.extend(names)

    thread = threading.Thread(target=run)
    thread.start()
    inside.wait(10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        caught.set()
        thread.join()
    assert changed == []


def test_random_numbers_that_the_main_thread_draws_are_not_drawn_again():
    inside, drawn = threading.Event(), threading.Event()

    def run():
        with kept_state():
            inside.set()
            drawn.wait(10)

    state = torch.get_rng_state()
    thread = threading.Thread(target=run)
    thread.start()
    inside.wait(10)
    torch.rand(3)
    drawn.set()
    thread.join()
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)


def test_nothing_is_said_where_nothing_was_changed():
    assert process_registry() is not None
    task = Task(PAIR.module_a, (INPUTS, TARGETS), "mse")
    for name in alignkit.list_solvers():
        solve(PAIR, solver=name, task=task)


@pytest.mark.parametrize("name", [name for name in SWITCHED if "filters" in name or "random" in name])
def test_what_another_thread_does_at_the_same_time_is_not_held_against_a_block(name):
    """Another thread that draws random numbers, or catches warnings, is not the code that the block runs."""

    def elsewhere():
        with watched_state("another thread"):
            SWITCHED[name]()

    with warnings.catch_warnings(), watched_state("this block"), ThreadPoolExecutor(1) as pool:
        pool.submit(elsewhere).result()


FIRST_USE = """
import random
import numpy as np, torch
import alignkit
def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
a, b = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
before = states()
{use}
assert states() == before
"""


@pytest.mark.parametrize(
    "use",
    [
        "; ".join(f"alignkit.{room}" for room in alignkit._ROOMS),
        "str(alignkit.compare(alignkit.trace(a, torch.ones(1, 3)).bind(a, b)))",
    ],
)
def test_the_first_use_in_a_process_draws_no_random_numbers_of_its_own(use):
    subprocess.run([sys.executable, "-W", "ignore", "-c", FIRST_USE.format(use=use)], check=True, timeout=300)
