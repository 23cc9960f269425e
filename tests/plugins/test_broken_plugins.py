"""Plugins that raise, hang or answer rubbish: one warning or one clear error each, and everything else works.

Every plugin here is a file that is really imported through an entry point.
"""

from __future__ import annotations

import itertools
import sys
import threading
import warnings
from importlib.metadata import Distribution, EntryPoint

import pytest

from alignkit.errors import ModelSourceError, SolverError, UsageError
from alignkit.jobs.solve import solve
from alignkit.models import sources
from alignkit.plugins import PluginWarning, Registry
from alignkit.plugins import loading as plugins
from alignkit.plugins.hookspecs import hookimpl
from alignkit.testing import mlp, planted_pair

BUILT_IN = set(Registry([]).solvers())
SOLVER = "class {0}(alignkit.Solver[alignkit.SolverOptions]):\n    name = {1!r}\n    def solve(self, problem, report):\n        return alignkit.Outcome(problem.start)\n"  # noqa: E501
HEAD = "import alignkit, os, sys\n" + SOLVER.format("Good", "good")


def hook(name: str, body: str) -> str:
    """A plugin whose hook has this body; it defines a solver class ``Good``."""
    return f"{HEAD}\n@alignkit.hookimpl\ndef alignkit_register_{name}():\n    {body}\n"


GOOD = hook("solvers", "return [Good]")


class FakeDistribution(Distribution):
    def __init__(self, metadata: str | None) -> None:
        self._text = metadata

    def read_text(self, filename):
        return self._text if filename == "METADATA" else None

    def locate_file(self, path):
        raise FileNotFoundError(path)


@pytest.fixture
def entry(tmp_path, monkeypatch):
    """Make an entry point whose module is a file with this code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    numbers = itertools.count()

    def make(code: str, name: str = "odd", package: str = "alignkit-odd") -> EntryPoint:
        module = f"plugin_of_{tmp_path.name}_{next(numbers)}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n"
        return EntryPoint(name, module, "alignkit")._for(FakeDistribution(metadata))

    return make


def works(registry: Registry) -> None:
    """A solve with a built-in solver, warnings being errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair = planted_pair(mlp(3, 5, 2))
        assert solve(pair.bind(), registry=registry).objective_after == 0
        assert set(registry.solvers()) >= BUILT_IN


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
def test_an_import_that_fails_is_one_warning(entry, case):
    code, said = IMPORTS[case]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry = Registry([entry(code), entry(GOOD, "good", "alignkit-good")])
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


def test_ctrl_c_while_a_plugin_is_imported_is_the_users_own(entry):
    with pytest.raises(KeyboardInterrupt):
        Registry([entry("raise KeyboardInterrupt")])


def test_a_plugin_that_hangs_while_it_is_imported_is_named(entry, monkeypatch):
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
        registry = Registry([entry(code)])
    monkeypatch.setattr(plugins, "SLOW", 60.0)
    assert len(told) == 1
    assert "Plugin 'odd' (alignkit-odd 0.3) is still being imported after 0.05 s." in told[0]
    assert "ALIGNKIT_DISABLE_PLUGINS=odd" in told[0]
    assert "good" in registry.solvers()
    assert registry.broken == []


def test_a_hook_that_hangs_is_named_and_warnings_may_be_errors(entry, monkeypatch):
    body = "import hung_until; assert hung_until.wait(60); return [Good]"
    registry = Registry([entry(hook("solvers", body))])
    seen = threading.Event()

    def warn(message):
        seen.set()
        raise PluginWarning(message)

    monkeypatch.setattr(plugins, "SLOW", 0.05)
    monkeypatch.setitem(sys.modules, "hung_until", seen)
    monkeypatch.setattr(plugins, "warn_of_plugin", warn)
    with pytest.raises(PluginWarning, match=r"still working on alignkit_register_solvers after 0\.05 s"):
        registry.solvers()


def test_a_quick_plugin_leaves_no_thread_behind(entry):
    before = threading.active_count()
    Registry([entry(GOOD)]).solvers()
    assert threading.active_count() == before


# ---------------------------------------------------------------------- damaged metadata


@pytest.mark.parametrize("metadata", [None, "", "Name: \n", "garbage", "Name: x\n"])
def test_damaged_metadata_is_no_obstacle(entry, metadata):
    point = entry(GOOD)._for(FakeDistribution(metadata))
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


# ---------------------------------------------------------------------- answers to hooks

ANSWERS = {
    "solvers": {
        "none": ("return None", "returned None instead of a list of solver classes"),
        "number": ("return 3", "returned 3 instead of"),
        "text": ("return 'sinkhorn'", "returned 'sinkhorn' instead of"),
        "mapping": ("return {'good': Good}", "instead of a list"),
        "the class": ("return Good", "instead of a list"),
        "instances": ("return [Good()]", "is not a Solver class"),
        "list of none": ("return [None]", "None is not a Solver class"),
        "other classes": ("return [dict]", "is not a Solver class"),
        "raises": ("1 / 0", "ZeroDivisionError: division by zero"),
        "exits": ("sys.exit(2)", "SystemExit: 2"),
        "raises midway": ("yield Good; 1 / 0", "ZeroDivisionError"),
        "never ends": ("while True: yield Good", "more than 10000"),
        "no name": ("Good.name = ''; return [Good]", "Good needs a name"),
        "name is a number": ("Good.name = 7; return [Good]", "not 7"),
        "name is none": ("Good.name = None; return [Good]", "not None"),
        "capitals": ("Good.name = 'Good'; return [Good]", "not 'Good'"),
        "chain in the name": ("Good.name = 'a > b'; return [Good]", "not 'a > b'"),
        "newline in the name": ("Good.name = 'good\\n'; return [Good]", "needs a name"),
        "needs": ("Good.needs = 'task'; return [Good]", "Good.needs is 'task', not an alignkit.Needs"),
        "returns": ("Good.returns = None; return [Good]", "Good.returns is None, not an alignkit.Returns"),
        "options": ("Good.Options = dict; return [Good]", "not a subclass of SolverOptions"),
        "options without schema": (
            "class O(alignkit.SolverOptions):\n"
            "        model_config = {'arbitrary_types_allowed': True}\n"
            "        other: alignkit.Solver = None\n"
            "    Good.Options = O; return [Good]",
            "no JSON schema",
        ),
        "its repr raises": (
            "class R:\n        def __repr__(self): 1 / 0\n    return [R()]",
            "an object of type R is not a Solver class",
        ),
        "abstract": (
            "class A(alignkit.Solver[alignkit.SolverOptions]):\n        name = 'a'\n    return [A]",
            "A does not define solve()",
        ),
    },
    "trace_rules": {
        "none": ("return None", "returned None instead of a mapping"),
        "pairs": ("return [('a::b', len)]", "instead of a mapping"),
        "no function": ("return {'a::b': 3}", "names must map to functions, found 'a::b': 3"),
        "number": ("return {3: len}", "found 3"),
        "no namespace": ("return {'fold': len}", "no namespace"),
        "raises": ("1 / 0", "ZeroDivisionError"),
    },
    "model_sources": {
        "none": ("return None", "returned None instead of a mapping"),
        "no function": ("return {'hub': 3}", "names must map to functions"),
        "colon": ("return {'a:b': len}", "a model source is named by"),
        "blank": ("return {'a b': len}", "a model source is named by"),
        "empty": ("return {'': len}", "names must map to functions"),
        "raises": ("raise RuntimeError('x')", "RuntimeError: x"),
    },
}
CASES = [(kind, case) for kind, cases in ANSWERS.items() for case in cases]


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_an_answer_that_is_rubbish_is_one_warning(entry, kind, case):
    body, said = ANSWERS[kind][case]
    registry = Registry([entry(hook(kind, body)), entry(GOOD.replace("'good'", "'fine'"), "good", "alignkit-good")])
    ask = {"solvers": registry.solvers, "trace_rules": registry.trace_rules, "model_sources": registry.model_sources}
    with pytest.warns(PluginWarning) as warned:
        ask[kind]()
    assert len(warned) == 1
    assert said in str(warned[0].message)
    assert f"'odd' (alignkit-odd 0.3) failed: alignkit_register_{kind}" in str(warned[0].message)
    works(registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        ask[kind]()
        assert "fine" in registry.solvers()
        assert {"torchvision", "python"} <= set(registry.model_sources())


def test_one_class_through_two_entry_points_is_no_conflict(entry):
    point = entry(GOOD)
    again = EntryPoint("again", point.value, "alignkit")._for(point.dist)
    with pytest.warns(PluginWarning, match="registered already"):
        registry = Registry([point, again])
    assert "good" in registry.solvers()


def test_one_package_with_two_solvers_of_one_name(entry):
    code = GOOD.replace("return [Good]", "return [Good, type('Twin', (Good,), {})]")
    registry = Registry([entry(code)])
    with pytest.raises(SolverError, match=r"'good' is offered 2 times by alignkit-odd 0\.3: rename"):
        registry.solver("good")
    assert registry.contested == {"good": ("alignkit-odd 0.3", "alignkit-odd 0.3")}
    works(registry)


def test_the_name_of_a_built_in_solver_stays_an_error_that_says_how_to_go_on(entry):
    code = GOOD.replace("'good'", "'weight_matching'")
    registry = Registry([entry(code)])
    with pytest.raises(SolverError, match=r"offered by alignkit and alignkit-odd 0\.3.*ALIGNKIT_DISABLE_PLUGINS"):
        solve(planted_pair(mlp(3, 5, 2)).bind(), registry=registry)
    works(Registry([entry(code)], disabled=["odd"]))


# ---------------------------------------------------------------------- model sources that misbehave when used

SOURCES = {
    "none": (lambda name: None, "returned None, not (model, args, kwargs)"),
    "model only": (lambda name: __import__("torch").nn.Linear(2, 2), "not (model, args, kwargs)"),
    "two": (lambda name: (1, 2), "returned (1, 2)"),
    "no module": (lambda name: ("model", (), {}), "returned (str, tuple, dict), not (Module, tuple, dict)"),
    "no tuple": (lambda name: (__import__("torch").nn.Linear(2, 2), 3, {}), "(Linear, int, dict)"),
    "raises": (lambda name: 1 / 0, "the source 'hub' failed: ZeroDivisionError"),
    "too many arguments": (lambda name, other: None, "the source 'hub' failed: TypeError"),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_source_that_returns_no_model_is_one_error(case, monkeypatch):
    make, said = SOURCES[case]

    class Offering:
        @hookimpl
        def alignkit_register_model_sources(self):
            return {"hub": make}

    registry = Registry([])
    registry.register(Offering())
    monkeypatch.setattr("alignkit.plugins.plugin_registry.registry", lambda: registry)
    for bare in (False, True):
        with pytest.raises(ModelSourceError) as caught:
            sources.load_model("hub:small", bare=bare)
        assert said in str(caught.value)
        assert str(caught.value).startswith("hub:small: ")
    with pytest.raises(UsageError):
        sources.load_model("hub:")
