"""Names that two plugins offer: no one gets them, and the message says how to choose."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from alignkit.errors import SolverError
from alignkit.jobs.solve import solve
from alignkit.plugins import PluginWarning, Registry
from alignkit.testing import mlp, planted_pair
from helpers.plugin_code import GOOD, plugin_offering, rule_plugin, solver_class, works


def test_one_class_through_two_entry_points_is_no_conflict(code_entry):
    point = code_entry(GOOD)
    again = EntryPoint("again", point.value, "alignkit")._for(point.dist)
    with pytest.warns(PluginWarning, match="registered already"):
        registry = Registry([point, again])
    assert "good" in registry.solvers()


def test_one_package_with_two_solvers_of_one_name(code_entry):
    code = GOOD.replace("return [Good]", "return [Good, type('Twin', (Good,), {})]")
    registry = Registry([code_entry(code)])
    with pytest.raises(SolverError, match=r"'good' is offered 2 times by alignkit-odd 0\.3: rename"):
        registry.solver("good")
    assert registry.contested == {"good": ("alignkit-odd 0.3", "alignkit-odd 0.3")}
    works(registry)


def test_the_name_of_a_built_in_solver_stays_an_error_that_says_how_to_go_on(code_entry):
    code = GOOD.replace("'good'", "'weight_matching'")
    registry = Registry([code_entry(code)])
    with pytest.raises(SolverError, match=r"offered by alignkit and alignkit-odd 0\.3.*ALIGNKIT_DISABLE_PLUGINS"):
        solve(planted_pair(mlp(3, 5, 2)).bind(), registry=registry)
    works(Registry([code_entry(code)], disabled=["odd"]))


def test_two_packages_with_one_solver_name_are_both_named_and_the_rest_works(entry):
    points = [
        entry("one", "alignkit-one", plugin_offering(solver_class("twin"), solver_class("only_one"))),
        entry("two", "alignkit-two", plugin_offering(solver_class("twin"))),
    ]
    registry = Registry(points)
    with pytest.raises(
        SolverError, match=r"solver 'twin' is offered by alignkit-one 0[.]3 and alignkit-two 0[.]3"
    ) as caught:
        registry.solver("twin")
    assert "ALIGNKIT_DISABLE_PLUGINS" in str(caught.value)
    assert "twin" not in registry.solvers()
    assert registry.solver("only_one").name == "only_one"
    assert Registry(points, disabled=["two"]).solver("twin").name == "twin"


def test_a_trace_rule_that_two_packages_claim_is_not_used(entry):
    registry = Registry(
        [
            entry("one", "alignkit-one", rule_plugin({"mylib::fold": lambda: 1, "mylib::once": lambda: 2})),
            entry("two", "alignkit-two", rule_plugin({"mylib::fold": lambda: 3})),
        ]
    )
    with pytest.warns(
        PluginWarning, match="alignkit-one 0.3 and alignkit-two 0.3 offer a trace rule for 'mylib::fold'"
    ):
        rules = registry.trace_rules()
    assert "mylib::once" in rules
    assert "mylib::fold" not in rules
