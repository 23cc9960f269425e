"""Finding, loading and asking plugins, so that none of them can break another.

pluggy's own loader stops at the first entry point that fails, and skips a second package that uses the same
entry-point name without a word. So a `Registry` loads one by one and remembers what failed, to say it
again at the moment when the missing thing is asked for.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

import alignkit.solvers as built_in_solvers  # now: a later import would hide the function `alignkit.solvers`
from alignkit import hookspecs, sources
from alignkit.errors import AlignkitError, PluginError, SolverError, UsageError
from alignkit.hookspecs import ModelSource
from alignkit.solver import Needs, Returns, Solver, SolverOptions
from alignkit.suggest import did_you_mean

if TYPE_CHECKING:
    from alignkit.trace import Rule

GROUP = "alignkit"
"""The entry-point group that plugins use."""
DISABLE_VARIABLE = "ALIGNKIT_DISABLE_PLUGINS"
"""Environment variable: entry-point or package names, separated by commas, that are not loaded."""
BUILT_IN = (built_in_solvers, sources)
"""Modules of alignkit itself that implement hooks."""

T = TypeVar("T")


class PluginWarning(UserWarning):
    """A plugin is broken, or an observer raised. alignkit goes on without it."""


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


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded, or whose answer to a hook was no good."""

    name: str
    package: str
    error: str

    def __str__(self) -> str:
        return f"Plugin {self.name!r} ({self.package}) failed: {self.error}."


class Registry:
    """All plugins of one process: built in, installed, or registered by hand.

    Args:
        entries: Entry points to load. By default those of all installed packages.
        disabled: Entry-point or package names to leave out. By default those in ``ALIGNKIT_DISABLE_PLUGINS``.
    """

    def __init__(self, entries: Iterable[EntryPoint] | None = None, *, disabled: Iterable[str] | None = None) -> None:
        self.manager = pluggy.PluginManager("alignkit")
        self.manager.add_hookspecs(hookspecs)
        self.broken: list[BrokenPlugin] = []
        self.skipped: list[str] = []
        """Names of plugins that were found but are disabled."""
        self._packages: dict[str, str] = {}
        self._raised: set[tuple[str, str]] = set()
        for module in BUILT_IN:
            self.register(module, package="alignkit")
        if disabled is None:
            disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
        unwanted = {_normalised(name) for name in disabled if name.strip()}
        for entry in entry_points(group=GROUP) if entries is None else entries:
            self._load(entry, unwanted)

    def register(self, plugin: object, *, name: str | None = None, package: str = "registered by hand") -> str:
        """Add a module or object that implements hooks, and return the name that it is registered under.

        Raises:
            PluginError: It implements no hook, misspells one, or asks for arguments that the hook lacks.
        """
        key = name or getattr(plugin, "__name__", None) or f"{type(plugin).__name__}-{id(plugin):x}"
        if self.manager.has_plugin(key) or self.manager.is_registered(plugin):
            raise PluginError(f"plugin {key!r} ({package}) is registered already.")
        try:
            if isinstance(plugin, type):
                raise PluginError("a class was given: pass an instance, or a module with hook functions")
            self.manager.register(plugin, name=key)
            self.manager.check_pending()
            self._check_hooks(plugin)
        except (pluggy.PluginValidationError, PluginError) as error:
            if self.manager.has_plugin(key):
                self.manager.unregister(name=key)
            raise PluginError(f"plugin {key!r} ({package}) cannot be used: {_one_line(error)}") from error
        self._packages[key] = package
        self._forget()
        return key

    def unregister(self, name: str) -> None:
        """Remove a plugin by the name that `register` returned."""
        self.manager.unregister(name=name)
        del self._packages[name]
        self._forget()

    # ------------------------------------------------------------------ solvers

    def solvers(self) -> dict[str, SolverInfo]:
        """Return all solvers that can be used by name, in alphabetical order."""
        return {name: claims[0] for name, claims in sorted(self._solver_claims.items()) if len(claims) == 1}

    def solver(self, name: str) -> type[Solver[Any]]:
        """Return the solver class of that name.

        Raises:
            SolverError: No plugin, or more than one, offers it. Broken and disabled plugins are named.
        """
        return self._only(self._solver_claims, name, "solver", SolverError).solver

    # ------------------------------------------------------------------ other offers

    def trace_rules(self) -> dict[str, Rule]:
        """Return all trace rules by operator; an operator that two packages claim is left out."""
        rules: dict[str, Rule] = {}
        for operator, claims in self._rule_claims.items():
            if len(claims) == 1:
                rules[operator] = claims[0][1]
                continue
            packages = _listed(package for package, _ in claims)
            _warn(f"{packages} offer a trace rule for {operator!r}; none of them is used.")
        return rules

    def model_sources(self) -> dict[str, ModelSource]:
        """Return all model sources that can be used by name."""
        return {name: claims[0][1] for name, claims in sorted(self._source_claims.items()) if len(claims) == 1}

    def model_source(self, name: str) -> ModelSource:
        """Return the model source of that name.

        Raises:
            UsageError: No plugin, or more than one, offers it. Broken and disabled plugins are named.
        """
        return self._only(self._source_claims, name, "model source", UsageError)[1]

    # ------------------------------------------------------------------ observers

    def notify(self, hook: str, **arguments: object) -> None:
        """Call an observer hook of every plugin. One that raises is warned about once; the solve goes on."""
        for key, call in self._implementations(hook):
            try:
                call(arguments)
            except Exception as error:
                if (key, hook) not in self._raised:
                    self._raised.add((key, hook))
                    _warn(
                        f"observer {key!r} ({self._packages[key]}) raised in {hook}: {_described(error)}. "
                        "The solve goes on; this is said once."
                    )

    # ------------------------------------------------------------------ inside

    def _load(self, entry: EntryPoint, unwanted: set[str]) -> None:
        distribution = entry.dist.name if entry.dist else entry.module.partition(".")[0]
        package = f"{distribution} {entry.dist.version}" if entry.dist else distribution
        if {_normalised(entry.name), _normalised(distribution)} & unwanted:
            self.skipped.append(entry.name)
            return
        try:
            self.register(entry.load(), name=f"{distribution}:{entry.name}", package=package)
        except PluginError as error:
            self._mark_broken(entry.name, package, _one_line(error.__cause__ or error))
        except (Exception, SystemExit) as error:  # third-party code: anything can happen while it is imported
            self._mark_broken(entry.name, package, _described(error))

    def _check_hooks(self, plugin: object) -> None:
        callers = self.manager.get_hookcallers(plugin) or []
        found = [hook for caller in callers for hook in caller.get_hookimpls() if hook.plugin is plugin]
        if not found:
            raise PluginError("it implements no hook: mark its functions with @alignkit.hookimpl")
        if any(hook.wrapper or hook.hookwrapper for hook in found):
            raise PluginError("it wraps a hook: alignkit calls plain functions only")

    def _mark_broken(self, name: str, package: str, error: str) -> None:
        broken = BrokenPlugin(name, package, error.rstrip("."))
        if broken in self.broken:
            return
        self.broken.append(broken)
        _warn(f"{broken} Everything else works. {DISABLE_VARIABLE}={name} silences this.")

    def _forget(self) -> None:
        for name in ("_solver_claims", "_rule_claims", "_source_claims"):
            self.__dict__.pop(name, None)

    def _implementations(self, hook: str) -> Iterator[tuple[str, Callable[[Mapping[str, object]], Any]]]:
        """Yield each plugin's implementation on its own: pluggy's call would end at the first that raises."""
        for found in reversed(getattr(self.manager.hook, hook).get_hookimpls()):

            def call(arguments: Mapping[str, object], found: pluggy.HookImpl = found) -> Any:
                return found.function(*(arguments[name] for name in found.argnames))

            yield found.plugin_name, call

    def _claims(self, hook: str, read: Callable[[Any, str], Iterable[tuple[str, T]]]) -> dict[str, list[T]]:
        """Collect all offers by name. An answer that cannot be read breaks only its own plugin."""
        claims: dict[str, list[T]] = {}
        for key, call in self._implementations(hook):
            package = self._packages[key]
            try:
                offers = list(read(call({}), package))
            except (Exception, SystemExit) as error:
                if package == "alignkit":
                    raise
                described = str(error) if isinstance(error, AlignkitError) else _described(error)
                self._mark_broken(key.partition(":")[2] or key, package, f"{hook}: {described}")
                continue
            for name, offer in offers:
                claims.setdefault(name, []).append(offer)
        return claims

    @cached_property
    def _solver_claims(self) -> dict[str, list[SolverInfo]]:
        return self._claims("alignkit_register_solvers", _read_solvers)

    @cached_property
    def _rule_claims(self) -> dict[str, list[tuple[str, Rule]]]:
        return self._claims("alignkit_register_trace_rules", _read_rules)

    @cached_property
    def _source_claims(self) -> dict[str, list[tuple[str, ModelSource]]]:
        return self._claims("alignkit_register_model_sources", _read_callables)

    def _only(self, claims: Mapping[str, list[T]], name: str, what: str, kind: type[AlignkitError]) -> T:
        offers = claims.get(name, [])
        if len(offers) == 1:
            return offers[0]
        if offers:
            packages = [getattr(offer, "package", None) or offer[0] for offer in offers]  # type: ignore[index]
            raise kind(
                f"{what} {name!r} is offered by {_listed(packages)}. Disable all but one: "
                f"{DISABLE_VARIABLE}=<entry point or package name>."
            )
        usable = sorted(key for key, found in claims.items() if len(found) == 1)
        message = f"no {what} is named {name!r}.{did_you_mean(name, usable)}"
        message += f" Available: {', '.join(usable) or 'none'}."
        message += "".join(f" {broken}" for broken in self.broken)
        if self.skipped:
            message += f" Disabled by {DISABLE_VARIABLE}: {', '.join(sorted(self.skipped))}."
        raise kind(message)


@cache
def registry() -> Registry:
    """Return the registry of this process. Plugins are loaded when it is first asked for."""
    return Registry()


def solvers() -> dict[str, SolverInfo]:
    """Return all solvers that can be used by name: built-in ones and those of installed plugins."""
    return registry().solvers()


def _read_solvers(answer: Any, package: str) -> Iterator[tuple[str, SolverInfo]]:
    for offered in answer:
        if not (isinstance(offered, type) and issubclass(offered, Solver)):
            raise PluginError(f"{offered!r} is no Solver class")
        if inspect.isabstract(offered):
            raise PluginError(f"solver class {offered.__name__} does not define solve()")
        if not re.fullmatch(r"[a-z][a-z0-9_]*", offered.name):
            raise PluginError(
                f"solver class {offered.__name__} needs a name of lower-case letters, digits and '_', "
                f"not {offered.name!r}"
            )
        yield offered.name, SolverInfo(offered.name, offered, package)


def _read_callables(answer: Any, package: str) -> Iterator[tuple[str, tuple[str, Any]]]:
    for name, offered in dict(answer).items():
        if not isinstance(name, str) or not callable(offered):
            raise PluginError(f"names must map to functions, found {name!r}: {offered!r}")
        yield name, (package, offered)


def _read_rules(answer: Any, package: str) -> Iterator[tuple[str, tuple[str, Any]]]:
    for name, offer in _read_callables(answer, package):
        if "::" not in name:
            raise PluginError(f"operator {name!r} has no namespace, write it as 'aten::{name}' or 'mylib::{name}'")
        yield name, offer


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=2)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}" if str(error) else type(error).__name__


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
