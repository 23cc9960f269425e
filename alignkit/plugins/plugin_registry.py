"""Finding, loading and asking plugins, so that none of them can break another.

pluggy's own loader stops at the first entry point that fails, and skips a second package that uses the same
entry-point name without a word. So a `Registry` loads one by one and remembers what failed, to say it
again at the moment when the missing thing is asked for.
"""

from __future__ import annotations

import inspect
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import pluggy

from alignkit.errors import AlignkitError, PluginError, SolverError, UsageError
from alignkit.plugins import hookspecs
from alignkit.plugins.hookspecs import ModelSource
from alignkit.plugins.offers import read_rules, read_solvers, read_sources
from alignkit.solver import Needs, Returns, Solver, SolverOptions
from alignkit.text import describe_error, did_you_mean, one_line

if TYPE_CHECKING:
    from alignkit.tracing import Rule

GROUP = "alignkit"
"""The entry-point group that plugins use."""
DISABLE_VARIABLE = "ALIGNKIT_DISABLE_PLUGINS"
"""Environment variable: entry-point or package names, separated by commas, that are not loaded."""
BUILT_IN = ("alignkit.solvers", "alignkit.models.sources")
"""Modules of alignkit itself that implement hooks. Named, not imported: they stand above this room."""
SLOW = 10.0
"""Seconds after which a plugin that is still being imported, or asked for its offers, is named in a warning."""
MOST = 10_000
"""Offers of one plugin to one hook. An answer that never ends is cut off here."""

T = TypeVar("T")
Claims: TypeAlias = dict[str, list[tuple[str, T]]]
"""For each name the packages that claim it, with what they offer."""


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
        self._contested: set[str] = set()
        for module in BUILT_IN:
            self.register(import_module(module), package="alignkit")
        if disabled is None:
            disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
        unwanted = {_normalised(name) for name in disabled if name.strip()}
        for entry in _installed() if entries is None else entries:
            self._load(entry, unwanted)

    def register(self, plugin: object, *, name: str | None = None, package: str = "registered by hand") -> str:
        """Add a module or object that implements hooks, and return the name that it is registered under.

        A module or object that is there already, because its package is installed or a notebook's cell ran twice, stays
        as it is, and its name is returned.

        Raises:
            PluginError: It implements no hook, misspells one, asks for arguments that the hook lacks, or its name is
                taken.
        """
        known = self.manager.get_name(plugin)
        if known is not None and name is None:
            return known
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
            raise PluginError(f"plugin {key!r} ({package}) cannot be used: {one_line(error)}") from error
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
        single = {name: claims[0] for name, claims in sorted(self._solver_claims.items()) if len(claims) == 1}
        return {name: SolverInfo(name, solver, package) for name, (package, solver) in single.items()}

    def solver(self, name: str) -> type[Solver[Any]]:
        """Return the solver class of that name.

        Raises:
            SolverError: No plugin, or more than one, offers it. Broken and disabled plugins are named.
        """
        return self._only(self._solver_claims, name, "solver", SolverError)

    @property
    def contested(self) -> dict[str, tuple[str, ...]]:
        """Names of solvers that cannot be used because several claim them, with the packages that do."""
        return {n: tuple(p for p, _ in claims) for n, claims in sorted(self._solver_claims.items()) if len(claims) > 1}

    # ------------------------------------------------------------------ other offers

    def trace_rules(self) -> dict[str, Rule]:
        """Return all trace rules by operator; an operator that two packages claim is left out, with one warning."""
        for operator, claims in self._rule_claims.items():
            if len(claims) > 1 and operator not in self._contested:
                self._contested.add(operator)
                packages = _listed(package for package, _ in claims)
                _warn(f"{packages} offer a trace rule for {operator!r}; none of them is used.")
        return {operator: claims[0][1] for operator, claims in self._rule_claims.items() if len(claims) == 1}

    def model_sources(self) -> dict[str, ModelSource]:
        """Return all model sources that can be used by name."""
        return {name: claims[0][1] for name, claims in sorted(self._source_claims.items()) if len(claims) == 1}

    def model_source(self, name: str) -> ModelSource:
        """Return the model source of that name.

        Raises:
            UsageError: No plugin, or more than one, offers it. Broken and disabled plugins are named.
        """
        return self._only(self._source_claims, name, "model source", UsageError)

    # ------------------------------------------------------------------ observers

    def notify(self, hook: str, **arguments: object) -> None:
        """Call an observer hook of every plugin. One that raises is warned about once; the solve goes on."""
        for key, call in self._implementations(hook):
            try:
                call(arguments)
            except Exception as error:
                if (key, hook) not in self._raised:
                    self._raised.add((key, hook))
                    package = self._packages.get(key, "removed")
                    _warn(
                        f"observer {key!r} ({package}) raised in {hook}: {describe_error(error)}. "
                        "The solve goes on; this is said once."
                    )

    # ------------------------------------------------------------------ inside

    def _load(self, entry: EntryPoint, unwanted: set[str]) -> None:
        distribution, package = _origin(entry)
        if {_normalised(entry.name), _normalised(distribution)} & unwanted:
            self.skipped.append(entry.name)
            return
        try:
            with _watched(f"Plugin {entry.name!r} ({package}) is still being imported", entry.name):
                plugin = entry.load()
            self.register(plugin, name=f"{distribution}:{entry.name}", package=package)
        except (KeyboardInterrupt, PluginWarning):
            raise
        except PluginError as error:
            self._mark_broken(entry.name, package, one_line(error.__cause__ or error))
        except BaseException as error:  # third-party code: exits and panics too, while it is imported
            self._mark_broken(entry.name, package, describe_error(error))

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

    def _claims(self, hook: str, read: Callable[[object], Iterator[tuple[str, T]]]) -> Claims[T]:
        """Collect all offers by name. An answer that cannot be read breaks only its own plugin."""
        claims: Claims[T] = {}
        for key, call in self._implementations(hook):
            package = self._packages[key]
            plugin = key.partition(":")[2] or key
            try:
                with _watched(f"Plugin {plugin!r} ({package}) is still working on {hook}", plugin):
                    offers = list(islice(read(call({})), MOST + 1))
                if len(offers) > MOST:
                    raise PluginError(f"it offers more than {MOST} things; does its generator end?")
            except (KeyboardInterrupt, PluginWarning):
                raise
            except BaseException as error:  # third-party code, as in _load
                if package == "alignkit":
                    raise
                said = one_line(error) if isinstance(error, AlignkitError) else describe_error(error)
                self._mark_broken(plugin, package, f"{hook}: {said}")
                continue
            for name, offer in offers:
                claimed = claims.setdefault(name, [])
                if not any(other is offer and by == package for by, other in claimed):  # a package may repeat itself
                    claimed.append((package, offer))
        return claims

    @cached_property
    def _solver_claims(self) -> Claims[type[Solver[Any]]]:
        return self._claims("alignkit_register_solvers", read_solvers)

    @cached_property
    def _rule_claims(self) -> Claims[Rule]:
        return self._claims("alignkit_register_trace_rules", read_rules)

    @cached_property
    def _source_claims(self) -> Claims[ModelSource]:
        return self._claims("alignkit_register_model_sources", read_sources)

    def _only(self, claims: Claims[T], name: str, what: str, kind: type[AlignkitError]) -> T:
        offers = claims.get(name, [])
        if len(offers) == 1:
            return offers[0][1]
        packages = {package for package, _ in offers}
        if len(packages) == 1:
            raise kind(f"{what} {name!r} is offered {len(offers)} times by {_listed(packages)}: rename all but one.")
        if packages:
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


def list_solvers() -> dict[str, SolverInfo]:
    """Return all solvers that can be used by name: built-in ones and those of installed plugins."""
    return registry().solvers()


def _installed() -> Iterable[EntryPoint]:
    """The entry points of all installed packages; none, with a warning, if their list cannot be read."""
    try:
        return entry_points(group=GROUP)
    except Exception as error:  # one damaged entry_points.txt is enough
        _warn(
            f"the entry points of the installed packages cannot be read: {describe_error(error)}. No plugin is loaded; "
            "an entry_points.txt next to a package is damaged."
        )
        return ()


def _origin(entry: EntryPoint) -> tuple[str, str]:
    """Name of the distribution of an entry point, and the name with its version; damaged metadata is no obstacle."""
    module = entry.value.partition(":")[0].partition(".")[0].strip() or entry.name
    try:
        name = entry.dist.name if entry.dist else None
        version = entry.dist.version if entry.dist else None
    except Exception:  # an installation that was removed by halves
        name = version = None
    name = name if isinstance(name, str) and name else module
    return name, f"{name} {version}" if isinstance(version, str) else name


@contextmanager
def _watched(what: str, name: str) -> Iterator[None]:
    """Warn, from another thread, if the block takes longer than ``SLOW``. Nothing can stop an import safely."""
    refused: list[PluginWarning] = []

    def tell() -> None:
        try:
            _warn(
                f"{what} after {SLOW:g} s. alignkit waits for it; interrupt with Ctrl-C, and leave it out with "
                f"{DISABLE_VARIABLE}={name}."
            )
        except PluginWarning as error:  # warnings are errors here: it is raised when the block ends
            refused.append(error)

    timer = threading.Timer(SLOW, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if refused:
        raise refused[0]


def _warn(message: str) -> None:
    warnings.warn(message, PluginWarning, stacklevel=2)


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
