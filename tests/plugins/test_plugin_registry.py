"""The registry: what plugins offer, what happens when they are broken, and what the user reads then."""

from __future__ import annotations

import sys
import types
import warnings
from importlib.metadata import Distribution, EntryPoint

import pytest

from alignkit.errors import PluginError, SolverError, UsageError
from alignkit.plugins import PluginWarning, Registry
from alignkit.plugins.hookspecs import hookimpl
from alignkit.solver import Outcome, Solver, SolverOptions


class FakeDistribution(Distribution):
    def __init__(self, name: str, version: str = "0.3") -> None:
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename):
        return self._text if filename == "METADATA" else None

    def locate_file(self, path):
        raise FileNotFoundError(path)


def solver_class(solver_name: str, **body):
    body.setdefault("solve", lambda self, problem, report: Outcome(problem.start))
    return type("Made", (Solver,), {"name": solver_name, "__doc__": f"Do {solver_name}.\n\nMore.", **body})


def plugin_offering(*solvers):
    class Offering:
        @hookimpl
        def alignkit_register_solvers(self):
            return list(solvers)

    return Offering()


@pytest.fixture
def entry(monkeypatch):
    """Make an entry point of a package, with any object behind it; a string is code that its import runs."""
    made = iter(range(100))

    def make(name: str, package: str, target: object) -> EntryPoint:
        module = f"made_plugin_{next(made)}"
        if isinstance(target, str):
            point = EntryPoint(name, module, "alignkit")
            loader = types.SimpleNamespace(code=target)
            monkeypatch.setattr(sys, "meta_path", [_RunOnImport(module, loader.code), *sys.meta_path])
        else:
            holder = types.ModuleType(module)
            holder.plugin = target
            monkeypatch.setitem(sys.modules, module, holder)
            point = EntryPoint(name, f"{module}:plugin", "alignkit")
        return point._for(FakeDistribution(package))

    return make


class _RunOnImport:
    def __init__(self, module: str, code: str) -> None:
        self.module, self.code = module, code

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            exec(self.code, {})


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


def test_a_plugin_that_cannot_be_imported_is_one_warning_and_breaks_nothing(entry):
    points = [
        entry("fast", "alignkit-fast", "raise ModuleNotFoundError(\"No module named 'jax'\")"),
        entry("mine", "alignkit-mine", plugin_offering(solver_class("mine"))),
    ]
    with pytest.warns(PluginWarning) as warned:
        registry = Registry(points)
    assert len(warned) == 1
    assert "Plugin 'fast' (alignkit-fast 0.3) failed: ModuleNotFoundError: No module named 'jax'." in str(
        warned[0].message
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {"mine", "identity"} <= set(registry.solvers())
    with pytest.raises(
        SolverError, match=r"Plugin 'fast' \(alignkit-fast 0.3\) failed: ModuleNotFoundError: No module"
    ):
        registry.solver("fast_matching")


def test_a_plugin_that_exits_while_it_is_imported_does_not_take_us_along(entry):
    with pytest.warns(PluginWarning, match="SystemExit: 3"):
        registry = Registry([entry("quits", "alignkit-quits", "raise SystemExit(3)")])
    assert "identity" in registry.solvers()


class Misspelt:
    @hookimpl
    def alignkit_register_solver(self):
        return []


class AsksTooMuch:
    @hookimpl
    def alignkit_solve_step(self, step, colour):
        pass


class Wraps:
    @hookimpl(wrapper=True)
    def alignkit_register_solvers(self):
        return (yield)


class Nothing:
    pass


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        (Misspelt(), "unknown hook 'alignkit_register_solver'"),
        (AsksTooMuch(), "colour"),
        (Wraps(), "wraps a hook"),
        (Nothing(), "implements no hook: mark its functions with @alignkit.hookimpl"),
        (Nothing, "a class was given: pass an instance"),
    ],
    ids=["misspelt hook", "unknown argument", "wrapper", "no hook", "class"],
)
def test_a_plugin_against_the_rules_says_which_rule(entry, plugin, said):
    with pytest.warns(PluginWarning) as warned:
        registry = Registry([entry("odd", "alignkit-odd", plugin)])
    assert said in str(warned[0].message)
    assert len(registry.broken) == 1
    assert {"identity", "weight_matching"} <= set(registry.solvers())
    with pytest.raises(PluginError, match="cannot be used") as caught:
        registry.register(plugin)
    assert said in str(caught.value)


class NoName(Solver[SolverOptions]):
    def solve(self, problem, report):
        return Outcome(problem.start)


class NoBody(Solver[SolverOptions]):
    name = "no_body"


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        (plugin_offering(NoName), "NoName needs a name"),
        (plugin_offering(solver_class("Weight Matching")), "not 'Weight Matching'"),
        (plugin_offering(NoBody), "NoBody does not define solve()"),
        (plugin_offering(NoName()), "is not a Solver class"),
        (plugin_offering("sinkhorn"), "'sinkhorn' is not a Solver class"),
    ],
    ids=["no name", "bad name", "abstract", "instance", "text"],
)
def test_an_offer_that_is_no_solver_breaks_only_its_plugin(entry, offered, said):
    registry = Registry([entry("odd", "alignkit-odd", offered)])
    with pytest.warns(PluginWarning, match="alignkit_register_solvers") as warned:
        found = registry.solvers()
    assert said in str(warned[0].message)
    assert {"identity", "weight_matching"} <= set(found)
    with pytest.raises(SolverError) as caught:
        registry.solver("odd")
    assert said in str(caught.value)


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


def test_two_packages_with_one_entry_point_name_are_both_loaded(entry):
    points = [entry("fast", f"alignkit-{name}", plugin_offering(solver_class(name))) for name in ("left", "right")]
    assert {"left", "right"} <= set(Registry(points).solvers())


@pytest.mark.parametrize("wish", ["mine", "alignkit-mine", "alignkit_mine", " other , Alignkit-Mine "])
def test_plugins_are_disabled_by_name_or_package(entry, monkeypatch, wish):
    monkeypatch.setenv("ALIGNKIT_DISABLE_PLUGINS", wish)
    registry = Registry([entry("mine", "alignkit-mine", "raise RuntimeError('it was imported')")])
    with pytest.raises(SolverError, match="Disabled by ALIGNKIT_DISABLE_PLUGINS: mine"):
        registry.solver("mine")


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


def rule_plugin(rules):
    class Offering:
        @hookimpl
        def alignkit_register_trace_rules(self):
            return rules

    return Offering()


def source_plugin(**sources):
    class Offering:
        @hookimpl
        def alignkit_register_model_sources(self):
            return sources

    return Offering()


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


def test_rules_have_to_be_functions(entry):
    registry = Registry([entry("one", "alignkit-one", rule_plugin({"mylib::fold": 3}))])
    with pytest.warns(PluginWarning, match="names must map to functions, found 'mylib::fold': 3"):
        registry.trace_rules()


def test_rules_need_a_namespace_so_that_one_bad_plugin_does_not_break_tracing(entry):
    registry = Registry([entry("one", "alignkit-one", rule_plugin({"fold": lambda call: None}))])
    with pytest.warns(PluginWarning, match="operator 'fold' has no namespace, write it as 'aten::fold'"):
        assert registry.trace_rules() == {}


def test_model_sources_are_found_by_name(entry):
    def build(name):
        return name, (), {}

    registry = Registry([entry("hub", "alignkit-hub", source_plugin(hub=build))])
    assert registry.model_source("hub") is build
    assert registry.model_sources()["hub"] is build
    with pytest.raises(UsageError, match=r"no model source is named 'hbu'\. Did you mean 'hub'\?"):
        registry.model_source("hbu")
