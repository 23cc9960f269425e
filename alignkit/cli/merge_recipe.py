"""What ``alignkit merge`` does: read from a recipe, from switches, or from both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import alignkit
from alignkit.cli import switches
from alignkit.cli.values import check_options, solver_options, weights_by_pattern

if TYPE_CHECKING:
    from alignkit.jobs import MergeRecipe, NetworkFiles, Record

GroupT = TypeVar("GroupT")


@dataclass(frozen=True)
class Plan:
    """A recipe, in the groups that commands take, and the record that it is from, if it is from one."""

    recipe: MergeRecipe
    earlier: Record | None

    @property
    def models(self) -> list[Path]:
        """The networks."""
        return list(map(Path, self.recipe.models))

    @property
    def output(self) -> Path:
        """Where the result is written."""
        return Path(self.recipe.output)

    @property
    def architecture(self) -> switches.ArchitectureSwitches:
        """How the layouts of the tensors are known."""
        return self._group(switches.ArchitectureSwitches)

    @property
    def kinds(self) -> switches.SymmetrySwitches:
        """Which symmetries are looked for."""
        return self._group(switches.SymmetrySwitches)

    @property
    def data(self) -> switches.TaskSwitches:
        """What the result is measured on."""
        return self._group(switches.TaskSwitches)

    @cached_property
    def solving(self) -> dict[str, Any]:
        """Keyword arguments for `alignkit.merge`: the solver, and how it runs."""
        recipe = self.recipe
        if not recipe.align:
            return {"solver": "identity", "seed": recipe.seed}
        return {
            "solver": recipe.solver, "seed": recipe.seed, "device": recipe.device, **check_options(recipe.options)
        }  # fmt: skip

    def _group(self, kind: type[GroupT]) -> GroupT:
        return kind(**{field.name: getattr(self.recipe, field.name) for field in switches.switches_of(kind)})

    def card(self, files: NetworkFiles, came_out: str) -> str:
        """Write the model card of the result."""
        recipe = self.recipe
        others = {} if recipe.weights is None else dict(recipe.weights)
        rest = others.pop("*", None)
        is_task = recipe.method in ("task_arithmetic", "ties", "dare")
        count = len(recipe.models) - is_task
        weights = [f"weight {value:g}" for value in rest or [1 / count] * count]
        ways = {
            "Method": recipe.method + (f", density {recipe.density:g}" if recipe.method in ("ties", "dare") else ""),
            "Units": f"aligned by {recipe.solver}, seed {recipe.seed}" if recipe.align else "not aligned",
            "Symmetries": "permutations" if recipe.symmetries == "permutation" else "all that were found",
            **{
                f"Weights of `{pattern}`": ", ".join(f"{value:g}" for value in values)
                for pattern, values in others.items()
            },
            "Dtypes": recipe.dtype or "those of the first network",
            "Tokenizer": f"that of `{recipe.tokenizer or recipe.models[0]}`",
            **({"Measured on": f"`{recipe.task}`"} if recipe.task else {}),
        }
        about = f"A merge of {len(recipe.models)} networks{'' if recipe.align else ', as they were'}."
        roles = [*(["base"] if is_task else []), *weights]
        return alignkit.jobs.model_card(
            alignkit.jobs.card_sources(files),
            self.output,
            about,
            roles,
            ways,
            came_out,
            ("merge",),
            recipe.parameters(),
        )


def read_plan(path: Path | None, job: switches.JobSwitches) -> Plan:
    """Read a recipe, if one is given, with the arguments and switches that were given beside it, which count more."""
    given = {name: _plain(value) for name, value in switches.deciding(job.given).items()}
    if "option" in given:
        given["options"] = solver_options(given.pop("option"))
    if "weight" in given:
        given["weights"] = weights_by_pattern(given.pop("weight"))
    return Plan(*alignkit.jobs.merge_recipe(path, **given))


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
