"""What plugins answer to hooks: rubbish is one warning, and everything else works."""

from __future__ import annotations

import warnings

import pytest

from alignkit.errors import SolverError
from alignkit.plugins import PluginWarning, Registry
from alignkit.solver import Outcome, Solver, SolverOptions
from helpers.plugin_code import GOOD, hook, plugin_offering, rule_plugin, solver_class, works

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
        "kinds": ("Good.kinds = {'permutation'}; return [Good]", "not a frozenset of some of permutation, signed"),
        "a kind that is none": ("Good.kinds = frozenset({'scaled'}); return [Good]", "Good.kinds is frozenset"),
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
def test_an_answer_that_is_rubbish_is_one_warning(code_entry, kind, case):
    body, said = ANSWERS[kind][case]
    fine = code_entry(GOOD.replace("'good'", "'fine'"), "good", "alignkit-good")
    registry = Registry([code_entry(hook(kind, body)), fine])
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


def test_rules_have_to_be_functions(entry):
    registry = Registry([entry("one", "alignkit-one", rule_plugin({"mylib::fold": 3}))])
    with pytest.warns(PluginWarning, match="names must map to functions, found 'mylib::fold': 3"):
        registry.trace_rules()


def test_rules_need_a_namespace_so_that_one_bad_plugin_does_not_break_tracing(entry):
    registry = Registry([entry("one", "alignkit-one", rule_plugin({"fold": lambda call: None}))])
    with pytest.warns(PluginWarning, match="operator 'fold' has no namespace, write it as 'aten::fold'"):
        assert registry.trace_rules() == Registry([]).trace_rules()
