"""The hooks of alignkit: every way in which another package can add to it or watch it.

A plugin is a module (or an object) with functions marked ``@alignkit.hookimpl``, named by an entry point of
the group ``alignkit``::

    [project.entry-points.alignkit]
    mine = "alignkit_mine"

An implementation may take fewer arguments than its hook offers; it is a plain function, not a pluggy wrapper.
The built-in solvers come through the same hooks. A script needs no package to use them::

    alignkit.plugins.registry().register(MyObserver())
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import pluggy
from torch import nn

from alignkit.solver import Problem, Solution, Solver, Step

if TYPE_CHECKING:  # the one place that names types of a room above
    from alignkit.tracing import Call as Call
    from alignkit.tracing import Labels as Labels
    from alignkit.tracing import Rule as Rule

hookspec = pluggy.HookspecMarker("alignkit")
hookimpl = pluggy.HookimplMarker("alignkit")

ModelSource: TypeAlias = Callable[[str], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
"""From the text after the colon to the model and the arguments and keywords of an example call."""


@hookspec
def alignkit_register_solvers() -> Iterable[type[Solver[Any]]]:
    """Offer solvers, as classes. Called once, when a solver is first looked up.

    The results of all plugins are joined. A name of alignkit's own stays alignkit's: an offer under it is left out,
    with a warning. A name that two other packages claim cannot be used until one of them is disabled
    (``ALIGNKIT_DISABLE_PLUGINS=name``); the error names both. Every other solver keeps working::

        @alignkit.hookimpl
        def alignkit_register_solvers():
            return [MySolver]
    """
    return ()


@hookspec
def alignkit_register_trace_rules() -> Mapping[str, Rule]:
    """Offer rules for operators that the tracer does not know. Called once, before the first trace.

    Keys are operator names with their namespace: ``"mylib::fold"``, or ``"mylib::fold.default"`` for one
    overload. A rule takes an `alignkit.tracing.Call` and returns the labels of the result. The results of all plugins
    are joined. An operator that alignkit has a rule for keeps it, and a warning names the plugin. If two other packages
    claim one operator, neither rule is used and a warning names both; what the operator touches then stays fixed,
    which is always safe::

        @alignkit.hookimpl
        def alignkit_register_trace_rules():
            return {"mylib::fold": fold_rule}
    """
    return {}


@hookspec
def alignkit_register_model_sources() -> Mapping[str, ModelSource]:
    """Offer ways to name a model on the command line. Called once, when a model is first named.

    ``alignkit trace mylib:small`` calls the source ``"mylib"`` with ``"small"``. It returns the model and the
    arguments and keywords of an example call. Claims by two packages are treated as for solvers::

        @alignkit.hookimpl
        def alignkit_register_model_sources():
            return {"mylib": lambda name: (mylib.build(name), (torch.zeros(1, 3, 32, 32),), {})}
    """
    return {}


@hookspec
def alignkit_solve_started(problem: Problem, solver: Solver[Any]) -> None:
    """Watch a solver start. Called once for each stage of a chain, in the thread that solves.

    An observer that raises or exits is warned about once; the solve continues. That holds for all three observer
    hooks::

        @alignkit.hookimpl
        def alignkit_solve_started(solver):
            print("running", solver)
    """


@hookspec
def alignkit_solve_step(problem: Problem, solver: Solver[Any], step: Step) -> None:
    """Watch one step. Called right after the solver reported it; keep it quick.

    ``step.alignment`` is the alignment that the solver has reached, where it says so; it is not checked yet.

    ``problem`` is the same object from start to finish, so that an observer can tell runs apart::

        @alignkit.hookimpl
        def alignkit_solve_step(step):
            print(step.iteration, step.objective)
    """


@hookspec
def alignkit_solve_finished(problem: Problem, solver: Solver[Any], solution: Solution | None) -> None:
    """Watch a solver end. Called once for every start, also when the solver failed (see ``solution.status``).

    After Ctrl-C ``solution.status`` is ``INTERRUPTED``. ``solution`` is ``None`` only if there is none, as after a
    second Ctrl-C::

        @alignkit.hookimpl
        def alignkit_solve_finished(solution):
            print(solution.explain() if solution else "ended")
    """
