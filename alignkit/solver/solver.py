"""What a solver is: a class with options, one method, and facts about what it needs and promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, cast, get_args, get_origin

from alignkit.arguments import check_arguments
from alignkit.errors import SolverChoiceError, SolverError
from alignkit.graph import SymmetryGraph
from alignkit.graph.elements.alignment import Alignment
from alignkit.graph.kinds import GroupKind
from alignkit.solver.options import OptionsT, SolverOptions, check_options
from alignkit.solver.outcome import Outcome, Report
from alignkit.solver.problem import Problem


@dataclass(frozen=True)
class Needs:
    """What a solver cannot do without, besides the weights of A and B."""

    task: bool = False
    """A `alignkit.Task`: data and a loss, passed as ``solve(..., task=...)``."""
    modules: bool = False
    """A and B as modules that can be run, not only as tensors."""
    in_memory: bool = True
    """Both networks in memory. Without it a solver asks `Problem.objective` for everything, and runs on pairs that stay
    on disk, ``graph.bind(a, b, memory=...)``."""

    @check_arguments
    def check(self, problem: Problem, solver: str) -> None:
        """Raise a `SolverError` that says what to pass when something is missing."""
        if problem.bound.is_stored:
            self._check_stored(problem, solver)
        self.check_task(problem.task is not None, solver)
        if self.modules and (problem.bound.module_a is None or problem.bound.module_b is None):
            bind = "bind modules instead of state dicts or files, graph.bind(model_a, model_b)"
            raise SolverError(f"solver {solver!r} runs both models: {bind}.")

    def _check_stored(self, problem: Problem, solver: str) -> None:
        advice = "bind the networks without memory="
        if self.in_memory:
            raise SolverError(f"solver {solver!r} holds both networks in memory: {advice}, or take weight_matching.")
        if problem.task is not None:
            raise SolverError(f"a task runs whole networks, which are to stay on disk: {advice}, or leave task= out.")
        if problem.device.type != "cpu":
            raise SolverError(f"networks on disk are matched on the CPU: {advice}, or leave device= out.")

    def check_task(self, given: bool, solver: str) -> None:
        """Raise a `SolverChoiceError` when there has to be a task and none is given."""
        if self.task and not given:
            raise SolverChoiceError(
                f"solver {solver!r} works with data: pass task=alignkit.Task(model, batches, loss), "
                "on the command line --task package.module:function."
            )


@dataclass(frozen=True)
class Returns:
    """What a solver promises. Listed by ``alignkit solvers`` and tested by the solver contract."""

    soft: bool = False
    """The outcome also holds a soft (doubly stochastic) alignment."""
    exact_on_permuted_copies: bool = False
    """If B is A with its units reordered, and no two units of A are alike, the order is found exactly."""
    monotone: bool = False
    """The objectives of the reported steps never rise."""


class Solver(ABC, Generic[OptionsT]):
    """Base class of all solvers. Subclass it as ``Solver[MyOptions]``, set ``name`` and write `solve`.

    Args:
        options: Values for the fields of the options class.

    Raises:
        SolverError: An option is unknown or out of range; every such option is named.
    """

    name: ClassVar[str] = ""
    """Name in ``solve(solver=...)``: lower-case letters, digits and ``_``."""
    Options: ClassVar[type[SolverOptions]] = SolverOptions
    """Class of the options. Taken from ``Solver[MyOptions]``; no need to write it."""
    kinds: ClassVar[frozenset[GroupKind]] = frozenset({"permutation"})
    """Kinds of groups that the solver takes, see `alignkit.graph.kinds`; graphs with others are refused."""
    needs: ClassVar[Needs] = Needs()
    returns: ClassVar[Returns] = Returns()

    options: OptionsT

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Options" in cls.__dict__:
            return
        for base in getattr(cls, "__orig_bases__", ()):
            origin, arguments = get_origin(base), get_args(base)
            if isinstance(origin, type) and issubclass(origin, Solver) and isinstance(arguments[0], type):
                cls.Options = arguments[0]

    def __init__(self, **options: Any) -> None:
        self.options = cast(OptionsT, check_options(self.name or type(self).__name__, self.Options, options))

    @abstractmethod
    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Align ``problem.b`` to ``problem.a``, calling ``report`` after each step.

        Random choices come from ``problem.seed``. Tensors of the problem are never written to.
        """

    def memory(self, graph: SymmetryGraph) -> int:
        """Return the bytes that the solver keeps at most, beside parts of networks that stay on disk."""
        return 0

    @check_arguments
    def objective(self, problem: Problem, alignment: Alignment) -> float:
        """Return the quantity that this solver minimises. Override it where that is not the squared distance."""
        return float(problem.objective.distance2(alignment))

    def __repr__(self) -> str:
        changed = ((name, getattr(self.options, name)) for name in sorted(self.options.model_fields_set))
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed)})"
