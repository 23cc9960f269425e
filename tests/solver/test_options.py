"""One name means one thing in all solvers, and an option that a solver would ignore is refused."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from alignkit import list_solvers
from alignkit.errors import SolverError
from alignkit.plugins import Registry
from alignkit.solver import IterativeOptions, SolverOptions, Start

SOLVERS = Registry([]).solvers()
ONE_STEP = ["activation_matching", "deepalign", "identity"]


def test_every_solver_has_a_seed_and_nothing_else_in_common() -> None:
    assert list(SolverOptions.model_fields) == ["seed"]
    assert all(issubclass(info.options, SolverOptions) for info in list_solvers().values())


@pytest.mark.parametrize("name", SOLVERS)
def test_only_solvers_that_work_step_by_step_have_a_limit(name: str) -> None:
    options = SOLVERS[name].options
    assert ("max_steps" in options.model_fields) == issubclass(options, IterativeOptions) == (name not in ONE_STEP)


@pytest.mark.parametrize("name", ONE_STEP)
def test_a_limit_that_would_be_ignored_is_refused(name: str) -> None:
    with pytest.raises(SolverError, match="there is no option 'max_steps'"):
        SOLVERS[name].solver(max_steps=3)


def test_starts_share_one_vocabulary() -> None:
    words = set(get_args(Start))
    for name, info in SOLVERS.items():
        field = info.options.model_fields.get("start")
        if field is not None:
            assert set(get_args(field.annotation)) < words, name


def test_objectives_share_one_vocabulary() -> None:
    words = set(get_args(SOLVERS["sinkhorn"].options.model_fields["objective"].annotation))
    assert set(get_args(SOLVERS["straight_through"].options.model_fields["objective"].annotation)) < words


def test_one_name_has_one_type_and_one_lower_bound() -> None:
    seen: dict[str, tuple[object, str]] = {}
    for name, info in SOLVERS.items():
        for option, field in info.options.model_fields.items():
            if option in ("start", "objective", "probes"):  # words, and a count that may be 0 where data is the default
                continue
            kind = ({*get_args(field.annotation), field.annotation} & {bool, int, float, str}, str(field.metadata))
            assert seen.setdefault(option, kind) == kind, f"{option} of {name}"


FIELDS = [(name, *item) for name, info in SOLVERS.items() for item in info.options.model_fields.items()]
FRACTIONS = [(name, option) for name, option, field in FIELDS if field.annotation is float]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("name", "option"), FRACTIONS)
def test_options_are_finite(name: str, option: str, value: float) -> None:
    with pytest.raises(SolverError, match=f"{option}="):
        SOLVERS[name].solver(**{option: value})
