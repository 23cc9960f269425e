"""Loading plugins: one that raises, hangs or is damaged is one warning, and everything else works.

Every plugin here is a file that is really imported through an entry point.
"""

from __future__ import annotations

import sys
import threading
import warnings
from importlib.metadata import EntryPoint

import pytest

from alignkit.errors import PluginError, SolverError
from alignkit.plugins import PluginWarning, Registry
from alignkit.plugins import loading as plugins
from alignkit.plugins.hookspecs import hookimpl
from helpers.plugin_code import GOOD, FakeDistribution, hook, plugin_offering, solver_class, works

# ---------------------------------------------------------------------- while it is imported

IMPORTS = {
    "error": ("raise ValueError('no licence')", "ValueError: no licence"),
    "module missing": ("import no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
    "syntax": ("def f(:", "SyntaxError"),
    "null byte": ("x = '\0'", "null bytes"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "sys.exit": ("import sys; sys.exit('bye')", "SystemExit: bye"),
    "panic": ("class PanicException(BaseException): pass\nraise PanicException('rust')", "PanicException: rust"),
    "generator exit": ("raise GeneratorExit", "GeneratorExit"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "memory": ("raise MemoryError", "MemoryError"),
    "text is broken": ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E"),
    "long text": ("raise ValueError('x' * 10**6)", "ValueError: xxx"),
    "assert": ("assert False, 'two\\nlines'", "AssertionError: two lines"),
    "empty file": ("", "implements no hook"),
    "warning as error": ("import warnings\nwarnings.warn('old', DeprecationWarning)\nraise KeyError(1)", "KeyError: 1"),
    "old alignkit": ("from alignkit import gone_since_long", "cannot import name 'gone_since_long'"),
}


@pytest.mark.parametrize("case", IMPORTS)
def test_an_import_that_fails_is_one_warning(code_entry, case):
    code, said = IMPORTS[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry = Registry([code_entry(code), code_entry(GOOD, "good", "alignkit-good")])
    ours = [str(w.message) for w in caught if isinstance(w.message, PluginWarning)]
    assert len(ours) == 1
    assert said in ours[0]
    assert "'odd' (alignkit-odd 0.3)" in ours[0]
    assert "ALIGNKIT_DISABLE_PLUGINS=odd" in ours[0]
    assert len(ours[0]) < 2000
    works(registry)
    assert "good" in registry.solvers()
    with pytest.raises(SolverError, match=r"no solver is named 'odd_one'.* Plugin 'odd' \(alignkit-odd 0\.3\) failed"):
        registry.solver("odd_one")


def test_ctrl_c_while_a_plugin_is_imported_is_the_users_own(code_entry):
    with pytest.raises(KeyboardInterrupt) as caught:
        Registry([code_entry("raise KeyboardInterrupt")])
    assert "plugin 'odd' (alignkit-odd 0.3) was being imported" in caught.value.__notes__[0]


def test_a_plugin_that_hangs_while_it_is_imported_is_named(code_entry, monkeypatch):
    """The import goes on once the warning was seen, so that the test ends; in life it is up to the user."""
    monkeypatch.setattr(plugins, "SLOW", 0.05)
    seen, told = threading.Event(), []

    def note(message, *args, **kwargs):
        told.append(str(message))
        seen.set()

    monkeypatch.setitem(sys.modules, "hung_until", seen)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        code = f"import hung_until\nassert hung_until.wait(60)\n{GOOD}"
        registry = Registry([code_entry(code)])
    monkeypatch.setattr(plugins, "SLOW", 60.0)
    assert len(told) == 1
    assert "Plugin 'odd' (alignkit-odd 0.3) is still being imported after 0.05 s." in told[0]
    assert "ALIGNKIT_DISABLE_PLUGINS=odd" in told[0]
    assert "good" in registry.solvers()
    assert registry.broken == []


def test_a_hook_that_hangs_is_named_and_warnings_may_be_errors(code_entry, monkeypatch):
    body = "import hung_until; assert hung_until.wait(60); return [Good]"
    registry = Registry([code_entry(hook("solvers", body))])
    seen = threading.Event()

    def warn(message):
        seen.set()
        raise PluginWarning(message)

    monkeypatch.setattr(plugins, "SLOW", 0.05)
    monkeypatch.setitem(sys.modules, "hung_until", seen)
    monkeypatch.setattr(plugins, "warn_of_plugin", warn)
    with pytest.raises(PluginWarning, match=r"still working on alignkit_register_solvers after 0\.05 s"):
        registry.solvers()


def test_a_quick_plugin_leaves_no_thread_behind(code_entry):
    before = threading.active_count()
    Registry([code_entry(GOOD)]).solvers()
    assert threading.active_count() == before


# ---------------------------------------------------------------------- damaged metadata


@pytest.mark.parametrize("metadata", [None, "", "Name: \n", "garbage", "Name: x\n"])
def test_damaged_metadata_is_no_obstacle(code_entry, metadata):
    point = code_entry(GOOD)._for(FakeDistribution(metadata))
    registry = Registry([point])
    assert "good" in registry.solvers()
    works(registry)


@pytest.mark.parametrize("value", ["", "no such module!", ":", "os:", "os:no.such", "os:path:join", "os.path [x"])
def test_an_entry_point_that_names_nothing_is_one_warning(value):
    with pytest.warns(PluginWarning, match="Plugin 'odd'") as warned:
        registry = Registry([EntryPoint("odd", value, "alignkit")])
    assert len(warned) == 1
    works(registry)


def test_a_list_of_entry_points_that_cannot_be_read_is_one_warning(monkeypatch):
    def damaged(group):
        raise TypeError("Pair.__new__() missing 1 required positional argument: 'value'")

    monkeypatch.setattr(plugins, "entry_points", damaged)
    with pytest.warns(PluginWarning, match=r"cannot be read: TypeError.* No plugin is loaded"):
        works(Registry())


def test_a_plugin_that_cannot_be_imported_is_one_warning_and_breaks_nothing(entry, code_entry):
    points = [
        code_entry("raise ModuleNotFoundError(\"No module named 'jax'\")", "fast", "alignkit-fast"),
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


def test_a_plugin_that_exits_while_it_is_imported_does_not_take_us_along(code_entry):
    with pytest.warns(PluginWarning, match="SystemExit: 3"):
        registry = Registry([code_entry("raise SystemExit(3)", "quits", "alignkit-quits")])
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


def test_two_packages_with_one_entry_point_name_are_both_loaded(entry):
    points = [entry("fast", f"alignkit-{name}", plugin_offering(solver_class(name))) for name in ("left", "right")]
    assert {"left", "right"} <= set(Registry(points).solvers())


@pytest.mark.parametrize("wish", ["mine", "alignkit-mine", "alignkit_mine", " other , Alignkit-Mine "])
def test_plugins_are_disabled_by_name_or_package(code_entry, monkeypatch, wish):
    monkeypatch.setenv("ALIGNKIT_DISABLE_PLUGINS", wish)
    registry = Registry([code_entry("raise RuntimeError('it was imported')", "mine", "alignkit-mine")])
    with pytest.raises(SolverError, match="Disabled by ALIGNKIT_DISABLE_PLUGINS: mine"):
        registry.solver("mine")
