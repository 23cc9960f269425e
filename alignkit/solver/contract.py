"""What a solver is: typed options in, a problem in, an outcome out.

A solver is one class with one method. Everything else (checks, timing, history, objective before and after,
saving) is done by `alignkit.solve` and is the same for all of them::

    class Keep(Solver[SolverOptions]):
        name = "keep"

        def solve(self, problem, report):
            return Outcome(problem.start)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from alignkit.errors import SolverError
from alignkit.text import did_you_mean

if TYPE_CHECKING:
    from alignkit.graph import Pair, SymmetryGraph
    from alignkit.graph.elements.alignment import Alignment
    from alignkit.matching.objective import Objective
    from alignkit.matching.soft_alignment import SoftAlignment
    from alignkit.tasks.task import Task


class SolverOptions(BaseModel):
    """Options that have the same name, meaning and unit in every solver. A subclass adds a solver's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = Field(0, ge=0)
    """Seed of every random choice. Same seed, same machine, same result."""
    rtol: float = Field(1e-9, ge=0)
    """Stop when one sweep improves the objective by less than this fraction. One-step solvers ignore it."""
    max_steps: int = Field(1000, ge=1)
    """Sweeps or gradient steps before giving up. One-step solvers ignore it."""


Report = Callable[["Step"], None]
OptionsT = TypeVar("OptionsT", bound=SolverOptions)


@dataclass(frozen=True)
class Needs:
    """What a solver cannot do without, besides the weights of A and B."""

    task: bool = False
    """A `alignkit.Task`: data and a loss, passed as ``solve(..., task=...)``."""
    modules: bool = False
    """A and B as modules that can be run, not only as tensors."""

    def check(self, problem: Problem, solver: str) -> None:
        """Raise a `SolverError` that says what to pass when something is missing."""
        if self.task and problem.task is None:
            raise SolverError(f"solver {solver!r} works with data: pass task=alignkit.Task(model, batches, loss).")
        if self.modules and (problem.bound.module_a is None or problem.bound.module_b is None):
            raise SolverError(
                f"solver {solver!r} runs both models: bind modules instead of state dicts or files, "
                "graph.bind(model_a, model_b)."
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


class Status(Enum):
    """How a solve ended. Each member is the sentence for the user, with what to try next."""

    OK = "The solver finished by its own stopping rule."
    MAX_STEPS = (
        "The alignment still changed when max_steps was reached. Raise max_steps, or start from a cheaper "
        "solver's result: init=alignkit.solve(pair)."
    )
    NONFINITE = (
        "The solver met NaN or inf although the weights are finite. Lower its learning rate, or start from "
        "another solver's result: init=alignkit.solve(pair)."
    )
    FAILED = "The solver raised an error. The alignment that it started from was kept."
    INVALID = "The solver did what no solver may. The alignment that it started from was kept."

    @property
    def failed(self) -> bool:
        """True if the alignment is no result of the solver. ``solve`` raises then, unless ``throw=False``."""
        return self in (Status.NONFINITE, Status.FAILED, Status.INVALID)


@dataclass(frozen=True, eq=False)
class Problem:
    """One alignment problem: find the order of B's units that brings B closest to A.

    Solvers read it and never change it: ``a`` and ``b`` are the user's own tensors.
    """

    bound: Pair
    init: Alignment | None = None
    """Where to start; ``None`` leaves it to the solver. Solvers that take no start may ignore it."""
    task: Task | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    """Type of the solver's arithmetic. Objectives are accumulated in float64 whatever it is."""
    seed: int = 0
    """Seed of every random choice. Takes the place of ``options.seed``, which is only its default."""

    @property
    def graph(self) -> SymmetryGraph:
        """The groups, and where they act."""
        return self.bound.graph

    @property
    def a(self) -> Mapping[str, Tensor]:
        """Tensors of model A by name. They stay where they are."""
        return self.bound.a

    @property
    def b(self) -> Mapping[str, Tensor]:
        """Tensors of model B by name, whose units are reordered."""
        return self.bound.b

    @cached_property
    def start(self) -> Alignment:
        """``init``, or the identity when there is none."""
        from alignkit.graph.elements.alignment import Alignment

        return Alignment.identity(self.graph) if self.init is None else self.init

    @cached_property
    def objective(self) -> Objective:
        """Squared distance and similarities of this pair, on the problem's device, in float64."""
        from alignkit.matching.objective import Objective

        return Objective(self.bound, device=self.device)

    def generator(self) -> torch.Generator:
        """A fresh CPU random generator with the problem's seed."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Step:
    """One line of a solver's history."""

    iteration: int
    objective: float
    """The solver's own objective after this step; lower is better."""
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a solver hands back."""

    alignment: Alignment
    status: Status = Status.OK
    stats: Mapping[str, float] = field(default_factory=dict)
    """Numbers worth keeping, such as sweeps or restarts."""
    soft: SoftAlignment | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    """Facts worth keeping that are no numbers, such as which trained weights were used."""


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
        self.options = cast(OptionsT, checked_options(self.name or type(self).__name__, self.Options, options))

    @abstractmethod
    def solve(self, problem: Problem, report: Report) -> Outcome:
        """Align ``problem.b`` to ``problem.a``, calling ``report`` after each step.

        Random choices come from ``problem.seed``. Tensors of the problem are never written to.
        """

    def objective(self, problem: Problem, alignment: Alignment) -> float:
        """The quantity that this solver minimises. Override it where that is not the squared distance."""
        return float(problem.objective.distance2(alignment))

    def __repr__(self) -> str:
        changed = ((name, getattr(self.options, name)) for name in sorted(self.options.model_fields_set))
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed)})"


def checked_options(solver: str, kind: type[SolverOptions], values: Mapping[str, object]) -> SolverOptions:
    """Return ``kind(**values)``, or raise one `SolverError` that names every wrong option."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        complaints = [
            _complaint(kind, details["type"], details["loc"], details["msg"], details["input"])
            for details in error.errors()
        ]
        raise SolverError(
            f"solver {solver!r} cannot take these options: {' '.join(complaints)} "
            f"Options of {solver!r}: {', '.join(kind.model_fields)}."
        ) from error


def _complaint(kind: type[SolverOptions], sort: str, place: tuple[int | str, ...], message: str, value: object) -> str:
    option = ".".join(str(part) for part in place)
    if sort == "extra_forbidden":
        return f"there is no option {option!r}.{did_you_mean(option, kind.model_fields)}"
    if not option:  # a check of several options together has no place
        return f"{message}."
    return f"{option}={value!r}: {message[:1].lower()}{message[1:]}."
