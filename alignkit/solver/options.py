"""Options of solvers: one name means one thing everywhere, and an option that a solver would ignore is refused.

What more than one solver has is called the same in all of them: ``seed``, ``max_steps``, ``start``, ``rtol`` (stop when
the objective improves by less than this fraction), ``restarts``, ``shuffle``, ``patience`` (stop after this many
attempts in a row without an improvement), ``learning_rate``, ``input_shape``, and for data ``samples``,
``score_samples``, ``batch_size`` and ``check_every``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignkit.errors import SolverChoiceError
from alignkit.text import did_you_mean

Start: TypeAlias = Literal["centre", "identity", "random", "weight_matching"]
"""All words for where a solver starts without ``init``; an option ``start`` allows those that make sense for it.

"centre": the mean of all orders, so that nothing depends on how units are stored. "identity": the order in which B is
stored. "random": an order (or a doubly stochastic matrix) drawn from the seed. "weight_matching": the result of weight
matching.
"""


class SolverOptions(BaseModel):
    """Options that every solver has. A subclass adds a solver's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    seed: int = Field(0, ge=0)
    """Seed of every random choice. Same seed, same machine, same result."""


class IterativeOptions(SolverOptions):
    """Options of solvers that improve step by step; a solver that works in one step has no ``max_steps``."""

    max_steps: int = Field(1000, ge=1)
    """Maximum number of steps of the main loop."""


OptionsT = TypeVar("OptionsT", bound=SolverOptions)


def check_options(solver: str, kind: type[OptionsT], values: Mapping[str, object]) -> OptionsT:
    """Return ``kind(**values)``, or raise a `SolverChoiceError` that names every option unknown or out of range."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        complaints = []
        for details in error.errors():
            option, message = ".".join(str(part) for part in details["loc"]), details["msg"]
            if details["type"] == "extra_forbidden":
                complaints.append(f"there is no option {option!r}.{did_you_mean(option, kind.model_fields)}")
            elif not option:  # a check of several options together belongs to none of them
                complaints.append(f"{message}.")
            else:
                complaints.append(f"{option}={details['input']!r}: {message[:1].lower()}{message[1:]}.")
        raise SolverChoiceError(
            f"solver {solver!r} cannot take these options: {' '.join(complaints)} "
            f"Options of {solver!r}: {', '.join(kind.model_fields)}."
        ) from error
