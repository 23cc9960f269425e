"""Names that two plugins offer: no one gets them, and the message says how to choose. alignkit's own stay its own."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from alignkit.errors import SolverError
from alignkit.plugins import PluginWarning, Registry
from alignkit.plugins.hookspecs import hookimpl
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


BUILT_IN = Registry([])


@pytest.mark.parametrize("name", BUILT_IN.solvers())
def test_a_built_in_solver_keeps_its_name(code_entry, name):
    code = GOOD.replace("return [Good]", f"return [Good, type('Twin', (Good,), {{'name': {name!r}}})]")
    registry = Registry([code_entry(code)])
    with pytest.warns(PluginWarning, match=rf"'odd' \(alignkit-odd 0\.3\).* it offers {name!r}, where alignkit's own"):
        assert registry.solver(name) is BUILT_IN.solver(name)
    assert registry.solvers()[name].package == "alignkit"
    assert registry.contested == {}
    assert registry.solver("good").name == "good"  # the other offers count
    works(registry)


def test_a_plugin_that_repeats_the_built_in_solvers_is_told(entry):
    solvers = [info.solver for info in BUILT_IN.solvers().values()]
    registry = Registry([entry("copy", "alignkit-copy", plugin_offering(*solvers, solver_class("mine")))])
    with pytest.warns(PluginWarning, match=r"alignkit-copy 0\.3.* and \d+ more, where alignkit's own solver stays"):
        assert set(registry.solvers()) == set(BUILT_IN.solvers()) | {"mine"}
    works(registry)


def test_a_package_that_calls_itself_alignkit_takes_no_name(entry):
    registry = Registry([entry("alignkit", "alignkit", plugin_offering(solver_class("identity")))])
    registry.register(plugin_offering(solver_class("identity")), package="alignkit")
    with pytest.warns(PluginWarning, match="identity"):
        assert registry.solver("identity") is BUILT_IN.solver("identity")


@pytest.mark.parametrize(
    "operator", ["aten::add", "aten::add.Tensor", "aten::add_", "aten::add_.Tensor", "aten::mm", "aten::view.default"]
)
def test_an_operator_with_a_built_in_rule_keeps_it(entry, operator):
    rules = {operator: lambda call: None, "mylib::fold": lambda call: None}
    registry = Registry([entry("one", "alignkit-one", rule_plugin(rules))])
    with pytest.warns(PluginWarning, match=rf"alignkit-one 0\.3.* it offers {operator!r}"):
        assert {**registry.trace_rules(), "mylib::fold": None} == {**BUILT_IN.trace_rules(), "mylib::fold": None}


@pytest.mark.parametrize("name", BUILT_IN.model_sources())
def test_a_built_in_model_source_keeps_its_name(name):
    class Sources:
        @hookimpl
        def alignkit_register_model_sources(self):
            return {name: lambda text: None, "hub": lambda text: None}

    registry = Registry([])
    registry.register(Sources())
    with pytest.warns(PluginWarning, match=f"registered by hand.* it offers {name!r}"):
        assert registry.model_source(name) is BUILT_IN.model_source(name)
    assert "hub" in registry.model_sources()


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
