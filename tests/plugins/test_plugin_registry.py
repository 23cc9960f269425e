"""The registry: what plugins offer is found by its name, and observers are told what happens."""

from __future__ import annotations

import warnings

import pytest

from alignkit.errors import PluginError, SolverError, UsageError
from alignkit.jobs.solve import solve
from alignkit.plugins import Registry
from alignkit.plugins.hookspecs import hookimpl
from alignkit.solver import SolverOptions, Status
from alignkit.testing import mlp, planted_pair
from helpers.plugin_code import plugin_offering, solver_class


def test_built_in_solvers_come_through_the_same_hook():
    found = Registry([]).solvers()
    assert {"identity", "weight_matching"} <= set(found)
    assert found["identity"].package == "alignkit"
    assert found["weight_matching"].summary
    assert not found["identity"].needs.task


def test_a_plugin_adds_a_solver(entry):
    registry = Registry([entry("mine", "alignkit-mine", plugin_offering(solver_class("mine")))])
    info = registry.solvers()["mine"]
    assert (info.package, info.summary, info.options) == ("alignkit-mine 0.3", "Do mine.", SolverOptions)
    assert registry.solver("mine") is info.solver


def test_a_mistyped_name_gets_a_suggestion_and_the_list():
    with pytest.raises(SolverError) as caught:
        Registry([]).solver("wieght-matching")
    assert "no solver is named 'wieght-matching'. Did you mean 'weight_matching'?" in str(caught.value)
    available = str(caught.value).partition("Available: ")[2].rstrip(".").split(", ")
    assert available == sorted(Registry([]).solvers())


def test_a_name_far_from_all_others_gets_no_suggestion():
    with pytest.raises(SolverError, match=r"no solver is named 'zzz'\. Available"):
        Registry([]).solver("zzz")


def test_a_plugin_can_be_registered_and_removed_by_hand():
    registry = Registry([])
    name = registry.register(plugin_offering(solver_class("mine")))
    assert "mine" in registry.solvers()
    registry.unregister(name)
    assert "mine" not in registry.solvers()


def test_registering_the_same_plugin_twice_says_so_and_keeps_the_first():
    registry, plugin = Registry([]), plugin_offering(solver_class("mine"))
    registry.register(plugin, name="mine")
    with pytest.raises(PluginError, match="mine"):
        registry.register(plugin, name="mine")
    assert "mine" in registry.solvers()


def test_the_function_is_not_hidden_by_the_package_of_the_same_name():
    import alignkit.solvers.identity

    assert alignkit.list_solvers()["identity"].solver is alignkit.list_solvers()["identity"].solver


class Watches:
    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.seen = error, []

    @hookimpl
    def alignkit_solve_step(self, step):
        self.seen.append(step)
        if self.error:
            raise self.error


def test_an_observer_that_raises_is_warned_about_once_and_others_still_hear():
    registry, good, bad = Registry([]), Watches(), Watches(ValueError("oh"))
    registry.register(good, name="good")
    registry.register(bad, name="bad")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for step in range(3):
            registry.notify("alignkit_solve_step", problem=None, solver=None, step=step)
    assert good.seen == bad.seen == [0, 1, 2]
    assert len(warned) == 1
    assert "observer 'bad' (registered by hand) raised in alignkit_solve_step: ValueError: oh" in str(warned[0].message)


def source_plugin(**sources):
    class Offering:
        @hookimpl
        def alignkit_register_model_sources(self):
            return sources

    return Offering()


def test_model_sources_are_found_by_name(entry):
    def build(name):
        return name, (), {}

    registry = Registry([entry("hub", "alignkit-hub", source_plugin(hub=build))])
    assert registry.model_source("hub") is build
    assert registry.model_sources()["hub"] is build
    with pytest.raises(UsageError, match=r"no model source is named 'hbu'\. Did you mean 'hub'\?"):
        registry.model_source("hbu")


class Interrupting:
    """An observer, an offer and an import that Ctrl-C meets."""

    @hookimpl
    def alignkit_solve_step(self):
        raise KeyboardInterrupt

    @hookimpl
    def alignkit_register_model_sources(self):
        raise KeyboardInterrupt


def test_ctrl_c_while_an_observer_is_at_work_interrupts_and_names_it():
    registry = Registry([])
    registry.register(Interrupting(), name="busy", package="alignkit-busy 1.0")
    solution = solve(planted_pair(mlp(3, 5, 2)).bind(), registry=registry)
    assert solution.status is Status.INTERRUPTED
    note = "Interrupted while observer 'busy' (alignkit-busy 1.0) was at work on alignkit_solve_step."
    assert solution.detail == note


def test_ctrl_c_while_a_plugin_makes_its_offers_interrupts_and_names_it():
    registry = Registry([])
    registry.register(Interrupting(), name="busy", package="alignkit-busy 1.0")
    with pytest.raises(KeyboardInterrupt) as caught:
        registry.model_sources()
    assert "plugin 'busy' (alignkit-busy 1.0)" in caught.value.__notes__[0]
