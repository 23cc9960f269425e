"""Recipes: everything that decides a merge, from a YAML file, from the record of an earlier merge, or from switches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alignkit.arguments import check_arguments
from alignkit.checkpoints import file_kind
from alignkit.checkpoints.opening import read_file
from alignkit.errors import UsageError
from alignkit.jobs.record import Record, read_record
from alignkit.jobs.shares import REST
from alignkit.jobs.yaml_text import MAX_YAML, YamlText
from alignkit.text import did_you_mean, show_value

Name = Annotated[str, Field(min_length=1)]
Numbers = tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
COMMON_WORDS = {
    "merge_method": "method", "base_model": "models", "tokenizer_source": "tokenizer", "parameters": "weights",
    "slices": "weights", "weight": "weights", "out_dtype": "dtype", "option": "options", "path": "output",
}  # fmt: skip
"""What other programs and the switches call a field."""


class MergeRecipe(BaseModel):
    """A merge as data: `alignkit merge --recipe FILE`. Every field is a switch of the command, too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    models: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Paths, or ids of the hub; the first is the reference, and the base of task vectors. Paths begin at the current
    folder, as on the command line."""
    output: Name
    """Where the result is written."""
    method: Literal["linear", "slerp", "task_arithmetic", "ties", "dare", "products", "factors"] = "linear"
    """How aligned networks are put together; ``products`` and ``factors`` are for adapters."""
    weights: dict[Name, Numbers] | None = None
    """A number for each model, or each task vector; or such lists by patterns of names of tensors."""
    density: Annotated[float, Field(allow_inf_nan=False)] = 0.5
    """Share of the entries of task vectors that ties and dare keep."""
    align: bool = True
    """Whether units are aligned before."""
    symmetries: Literal["permutation", "all"] = "permutation"
    keep_tied: bool = False
    solver: Name = "weight_matching"
    """A name, or a chain: ``"first > second"``."""
    options: dict[Name, Any] = Field(default_factory=dict)
    """Options of the solver."""
    seed: Annotated[int, Field(ge=0)] = 0
    device: Name | None = None
    task: Name | None = None
    reset_batchnorm: bool = True
    repair: bool = False
    stretch: Annotated[int, Field(ge=0)] = 0
    """Steps in which scales and matrices move, on the inputs of the task."""
    dtype: Name | None = None
    tokenizer: Name | None = None
    """Which of the models gives the tokenizer; without it the first does."""
    memory: Name | None = None
    model: Name | None = None
    """The architecture of weights files, which is traced."""
    spec: Name | None = None
    """The same as a JSON file of layouts."""
    key: Name | None = None
    prefix: str | None = None
    outputs: tuple[Name, ...] = ()
    ignore_config: tuple[Name, ...] = ()
    allow_missing: tuple[Name, ...] = ()
    """Patterns of names of tensors that a model may lack."""
    allow_download: bool = False

    @field_validator("models", "outputs", "ignore_config", "allow_missing", mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("weights", mode="before")
    @classmethod
    def _by_pattern(cls, value: Any) -> Any:
        table = {REST: value} if isinstance(value, list | tuple) else value
        return {n: cls._from_list(part) for n, part in table.items()} if isinstance(table, Mapping) else table

    @model_validator(mode="after")
    def _know_the_tokenizer(self) -> Self:
        if self.tokenizer is not None and Path(self.tokenizer) not in map(Path, self.models):
            near = did_you_mean(self.tokenizer, self.models) or f" There are {', '.join(self.models)}."
            raise ValueError(f"tokenizer: {self.tokenizer!r} is not one of the models.{near}")
        return self

    def parameters(self) -> dict[str, Any]:
        """Return the fields that are not what they are by default, as a recipe holds them."""
        return self.model_dump(mode="json", exclude_defaults=True)


SWITCHES = {"models": "MODELS", "weights": "--weight", "options": "--option", "align": "--no-align"}
"""Switches that are not called as their field."""


def read_recipe(path: Path) -> tuple[YamlText, Record | None]:
    """Read the values of a recipe, from YAML or from a record; they are not checked yet.

    Returns:
        The values with their lines, and the record that they are from.

    Raises:
        UsageError: It is not a recipe, or the record is damaged or not one of a merge.
    """
    if path.is_dir() or path.suffix == ".json" or file_kind(path) is not None:
        record = read_record(path)
        if record.job != "merge":
            raise UsageError(f"{path} is the record of alignkit {record.job}, and only a merge is a recipe.")
        return YamlText(str(path), dict(record.parameters)), record
    try:
        text = read_file(path, MAX_YAML).decode()
    except OSError as error:
        raise UsageError(f"the recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the recipe {path} is not a text in UTF-8.") from error
    read = YamlText.read(text, path)
    if not isinstance(read.values, dict):
        raise UsageError(f"{path} has to name fields, such as 'models: [a, b]' and 'output: merged'.")
    return read, None


@check_arguments
def merge_recipe(path: str | Path | None = None, **given: Any) -> tuple[MergeRecipe, Record | None]:
    """Return the recipe of a file, with fields that were given beside it; what was given counts more.

    Args:
        path: A YAML file, or an output of ``alignkit merge`` or its ``alignkit.json``. None: there is only what is
            given.
        given: Fields of `MergeRecipe`.

    Returns:
        The recipe, and the record that it is from, if it is from one.

    Raises:
        UsageError: A field is unknown, missing or wrong; the message names its line.
    """
    text, record = (YamlText("the command line", {}), None) if path is None else read_recipe(Path(path))
    values = {**text.values, **given}
    try:
        return MergeRecipe.model_validate(values), record
    except ValidationError as error:
        refuse_fields(error, text, given)


def refuse_fields(error: ValidationError, text: YamlText, given: Iterable[str]) -> NoReturn:
    """Raise a `UsageError` that says of every wrong field where it stands and what it has to be."""
    problems: dict[str, None] = {}
    for entry in error.errors(include_url=False):
        steps = [step for step in entry["loc"] if step != "[key]"]
        name = str(steps[0]) if steps else ""
        is_switch = name in given or not text.values
        place = (
            SWITCHES.get(name, f"--{name.replace('_', '-')}") if is_switch else text.place(text.line_of(tuple(steps)))
        )
        where = ".".join(map(str, steps[1 if is_switch else 0 :]))
        problems[f"{place}: {where + ': ' if where else ''}{_problem(entry, name)}"] = None
    said = "; ".join(problems)
    raise UsageError(said if said.endswith("?") else f"{said}.")


PROBLEMS = {
    "missing": "it is missing",
    "too_short": "give two or more",
    "string_type": "{} is not a text: put quotes around it",
    "tuple_type": "{} is not a list",
    "dict_type": "{} is not a table of names and values",
    "bool_type": "{} is neither true nor false",
    "finite_number": "give a finite number",
}
"""What is wrong with a field, by the name that pydantic has for it."""


def _problem(entry: Mapping[str, Any], name: str) -> str:
    """Say what is wrong with one field."""
    kind, value = entry["type"], show_value(entry["input"])
    if kind == "extra_forbidden":
        known = COMMON_WORDS.get(name)
        near = f" It is called {known!r} here." if known else did_you_mean(name, MergeRecipe.model_fields)
        return f"there is no such field.{near}".rstrip(".?") + ("?" if near.endswith("?") else "")
    if kind in PROBLEMS:
        return PROBLEMS[kind].format(value)
    if kind == "value_error":
        return str(entry["ctx"]["error"]).rstrip(".")
    if kind == "literal_error":
        near = did_you_mean(
            str(entry["input"]), str(entry["ctx"]["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
        )
        return f"{value}: take {entry['ctx']['expected']}.{near}".rstrip(".")
    return f"{value}: {entry['msg'][0].lower()}{entry['msg'][1:]}"
