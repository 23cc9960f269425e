"""The registry: what all plugins of a process offer, by name, and the observers among them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, wraps
from importlib import import_module
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from alignkit.errors import SolverChoiceError, UsageError
from alignkit.graph.kinds import KINDS
from alignkit.plugins.claims import Claims, join_names
from alignkit.plugins.hookspecs import ModelSource
from alignkit.plugins.loading import PluginSet, warn_of_plugin
from alignkit.plugins.offers import read_rules, read_solvers, read_sources, rules_covering
from alignkit.process_state import kept_state, switched_by, warn_of_changes, watched_state
from alignkit.solver import Needs, Returns, Solver, SolverOptions
from alignkit.text import describe_error

if TYPE_CHECKING:
    from alignkit.plugins.hookspecs import Call, Labels, Rule

BUILT_IN = ("alignkit.solvers", "alignkit.tracing.rules.built_in", "alignkit.models.sources")
"""Modules of alignkit itself that implement hooks. Named, not imported: they stand above this room."""
OFFERS = {
    "solver": ("alignkit_register_solvers", read_solvers, lambda name: (name,)),
    "trace rule": ("alignkit_register_trace_rules", read_rules, rules_covering),
    "model source": ("alignkit_register_model_sources", read_sources, lambda name: (name,)),
}
"""What can be offered, each with its hook, what reads an answer to it, and under which names a name is taken."""


@dataclass(frozen=True)
class SolverInfo:
    """What is known about a solver without running it."""

    name: str
    solver: type[Solver[Any]]
    package: str
    """Distribution that it comes from, with its version."""

    @property
    def summary(self) -> str:
        """First paragraph of the solver's docstring, on one line."""
        return " ".join((inspect.getdoc(self.solver) or "").partition("\n\n")[0].split())

    @property
    def needs(self) -> Needs:
        """What has to be passed besides the weights."""
        return self.solver.needs

    @property
    def returns(self) -> Returns:
        """What the solver promises."""
        return self.solver.returns

    @property
    def options(self) -> type[SolverOptions]:
        """Class of the options: names, defaults, ranges and descriptions."""
        return self.solver.Options

    @property
    def needed(self) -> str:
        """What has to be passed besides the weights, in words."""
        return ", ".join(name for name, wanted in asdict(self.needs).items() if wanted) or "weights"

    def facts(self) -> dict[str, Any]:
        """Return everything as plain values, as JSON takes them."""
        return {
            "name": self.name,
            "summary": self.summary,
            "package": self.package,
            "needs": asdict(self.needs),
            "returns": asdict(self.returns),
            "kinds": [kind for kind in KINDS if kind in self.solver.kinds],
            "options": self.options.model_json_schema(),
        }


class Registry:
    """All plugins of one process: built in, installed, or registered by hand.

    Args:
        entries: Entry points to load. By default those of all installed packages.
        disabled: Entry-point or package names to leave out. By default those in ``ALIGNKIT_DISABLE_PLUGINS``.
    """

    def __init__(self, entries: Iterable[EntryPoint] | None = None, *, disabled: Iterable[str] | None = None) -> None:
        self.plugins = PluginSet()
        self.broken = self.plugins.broken
        """Plugins that failed, with the reason."""
        self._claimed: dict[str, Claims[Any]] = {}
        self._reported: set[object] = set()
        """What was warned about once and is not warned about again."""
        for module in BUILT_IN:
            self.plugins.built_in.add(self.plugins.register(import_module(module), None, "alignkit"))
        self.plugins.load(entries, disabled)

    def register(self, plugin: object, *, name: str | None = None, package: str = "registered by hand") -> str:
        """Add a module or object that implements hooks, and return the name that it is registered under.

        One that is there already, as its package is installed or a notebook's cell ran twice, stays as it is.

        Raises:
            PluginError: It implements no hook, misspells one, asks for arguments that the hook lacks, or its name is
                taken.
        """
        key = self.plugins.register(plugin, name, package)
        self._claimed.clear()
        return key

    def unregister(self, name: str) -> None:
        """Remove a plugin by the name that `register` returned."""
        self.plugins.unregister(name)
        self._claimed.clear()

    def solvers(self) -> dict[str, SolverInfo]:
        """Return all solvers that can be used by name, in alphabetical order."""
        usable = self._claims("solver").usable
        return {name: SolverInfo(name, kind, package) for name, (package, kind) in usable.items()}

    def solver(self, name: str) -> type[Solver[Any]]:
        """Return the solver class of that name.

        Raises:
            SolverChoiceError: No plugin, or more than one, offers it. Broken and disabled plugins are named.
        """
        solver: type[Solver[Any]] = self._claims("solver").find(name, SolverChoiceError)
        return solver

    def origin(self, solver: Solver[Any]) -> str:
        """Say in a sentence which package or module a solver comes from; "" for those of alignkit."""
        offers = self._claimed["solver"].offers.get(solver.name, []) if "solver" in self._claimed else []
        package = next((package for package, kind in offers if kind is type(solver)), type(solver).__module__)
        return "" if package.partition(".")[0] == "alignkit" else f"The solver comes from {package}."

    @property
    def contested(self) -> dict[str, tuple[str, ...]]:
        """Names of solvers that cannot be used because several claim them, with the packages that do."""
        return self._claims("solver").contested

    def trace_rules(self) -> dict[str, Rule]:
        """Return all trace rules by operator, those of alignkit and those of plugins.

        An operator that two packages claim is left out, with one warning.
        """
        rules = self._claims("trace rule")
        for operator, packages in rules.contested.items():
            if operator not in self._reported:
                self._reported.add(operator)
                warn_of_plugin(f"{join_names(packages)} offer a trace rule for {operator!r}; none of them is used.")
        return {
            operator: rule if package == "alignkit" else _watched_rule(rule, operator, package)
            for operator, (package, rule) in rules.usable.items()
        }

    def model_sources(self) -> dict[str, ModelSource]:
        """Return all model sources that can be used by name."""
        return {name: source for name, (_, source) in self._claims("model source").usable.items()}

    def model_source(self, name: str) -> ModelSource:
        """Return the model source of that name.

        Raises:
            UsageError: No plugin, or more than one, offers it. Broken and disabled plugins are named.
        """
        source: ModelSource = self._claims("model source").find(name, UsageError)
        return source

    def _claims(self, what: str) -> Claims[Any]:
        """Ask the plugins once, and again when one has come or gone."""
        if what not in self._claimed:
            self._claimed[what] = Claims.collect(self.plugins, what, *OFFERS[what])
        return self._claimed[what]

    def notify(self, hook: str, **arguments: object) -> None:
        """Call an observer hook of every plugin. One that raises is warned about once; the solve continues."""
        for key, call in self.plugins.implementations(hook, arguments):
            changed: list[str] = []
            try:
                with kept_state(switched_by(call.func)) as changed:
                    call()
            except KeyboardInterrupt as interrupt:
                interrupt.add_note(f"Interrupted while {self._observer(key)} was at work on {hook}.")
                raise
            except BaseException as error:  # third-party code: exits and panics too
                if (key, hook) not in self._reported:
                    self._reported.add((key, hook))
                    reason = f"raised in {hook}: {describe_error(error)}"
                    warn_of_plugin(f"{self._observer(key)} {reason}. The solve continues; this is said once.")
            if changed and (key, *changed) not in self._reported:
                self._reported.add((key, *changed))
                warn_of_changes(self._observer(key), changed)

    def _observer(self, key: str) -> str:
        return f"observer {key!r} ({self.plugins.packages.get(key, 'removed')})"


def _watched_rule(rule: Rule, operator: str, package: str) -> Rule:
    """Return a rule of a plugin that leaves the state of the process as it is."""

    @wraps(rule)
    def watched(call: Call) -> Labels | Sequence[Labels]:
        with watched_state(f"the trace rule for {operator!r} ({package})"):
            return rule(call)

    return watched


@cache
def registry() -> Registry:
    """Return the registry of this process. Plugins are loaded when it is first asked for."""
    return Registry()


def list_solvers() -> dict[str, SolverInfo]:
    """Return all solvers that can be used by name: built-in ones and those of installed plugins."""
    return registry().solvers()
