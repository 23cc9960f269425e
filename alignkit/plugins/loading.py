"""Finding, registering and loading plugins one by one, so that none of them can break another.

pluggy's own loader stops at the first entry point that fails, and skips a second package that uses the same
entry-point name without a word. So a `PluginSet` loads one by one and remembers what failed, to say it again at the
moment when the missing thing is asked for.
"""

from __future__ import annotations

import os
import re
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from alignkit.errors import PluginError, PluginWarning
from alignkit.plugins import hookspecs
from alignkit.process_state import SWITCHES, watched_state
from alignkit.text import describe_error, one_line

GROUP = "alignkit"
"""The entry-point group that plugins use."""
DISABLE_VARIABLE = "ALIGNKIT_DISABLE_PLUGINS"
"""Environment variable: entry-point or package names, separated by commas, that are not loaded."""
SLOW = 10.0
"""Seconds after which a plugin that is still being imported, or asked for its offers, is named in a warning: torch and
transformers together take less on a laptop."""


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that could not be loaded, or whose answer to a hook was not usable."""

    name: str
    package: str
    error: str

    def __str__(self) -> str:
        return f"Plugin {self.name!r} ({self.package}) failed: {self.error}."


class PluginSet:
    """Plugins with the packages that they come from."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("alignkit")
        self.manager.add_hookspecs(hookspecs)
        self.built_in: set[str] = set()
        """Names of the modules of alignkit itself among the plugins."""
        self.packages: dict[str, str] = {}
        """Distribution and version of each plugin, by the name that it is registered under."""
        self.broken: list[BrokenPlugin] = []
        self.skipped: list[str] = []
        """Names of entry points that were found but are disabled."""

    def register(self, plugin: object, name: str | None, package: str) -> str:
        """Add a plugin; see `Registry.register`."""
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
            callers = self.manager.get_hookcallers(plugin) or []
            hooks = [hook for caller in callers for hook in caller.get_hookimpls() if hook.plugin is plugin]
            if not hooks:
                raise PluginError("it implements no hook: mark its functions with @alignkit.hookimpl")
            if any(hook.wrapper or hook.hookwrapper for hook in hooks):
                raise PluginError("it wraps a hook: alignkit calls plain functions only")
        except (pluggy.PluginValidationError, PluginError) as error:
            if self.manager.has_plugin(key):
                self.manager.unregister(name=key)
            raise PluginError(f"plugin {key!r} ({package}) cannot be used: {one_line(error)}") from error
        self.packages[key] = package
        return key

    def unregister(self, name: str) -> None:
        """Remove a plugin by the name that `register` returned."""
        self.manager.unregister(name=name)
        del self.packages[name]

    def load(self, entries: Iterable[EntryPoint] | None, disabled: Iterable[str] | None) -> None:
        """Import and register plugins, as `Registry` says; what fails is remembered, with one warning."""
        if disabled is None:
            disabled = os.environ.get(DISABLE_VARIABLE, "").split(",")
        unwanted = {_normalise(name) for name in disabled if name.strip()}
        if entries is None:
            try:
                entries = entry_points(group=GROUP)
            except Exception as error:  # one damaged entry_points.txt is enough
                problem = f"the entry points of the installed packages cannot be read: {describe_error(error)}"
                warn_of_plugin(f"{problem}. No plugin is loaded; an entry_points.txt next to a package is damaged.")
                entries = ()
        for entry in entries:
            try:
                installed = entry.dist
                distribution, version = (installed.name, installed.version) if installed is not None else (None, None)
            except Exception:  # an installation that was removed by halves: damaged metadata is no obstacle
                distribution = version = None
            if not isinstance(distribution, str) or not distribution:
                distribution = entry.value.partition(":")[0].partition(".")[0].strip() or entry.name
            package = f"{distribution} {version}" if isinstance(version, str) else distribution
            if {_normalise(entry.name), _normalise(distribution)} & unwanted:
                self.skipped.append(entry.name)
                continue
            try:
                with (
                    warn_if_slow(f"Plugin {entry.name!r} ({package}) is still being imported", entry.name),
                    watched_state(f"plugin {entry.name!r} ({package}), while it was imported,", SWITCHES),
                ):
                    plugin = entry.load()
                self.register(plugin, f"{distribution}:{entry.name}", package)
            except KeyboardInterrupt as interrupt:
                interrupt.add_note(f"Interrupted while plugin {entry.name!r} ({package}) was being imported.")
                raise
            except PluginWarning:
                raise
            except PluginError as error:
                self.mark_broken(entry.name, package, one_line(error.__cause__ or error))
            except BaseException as error:  # third-party code: exits and panics too, while it is imported
                self.mark_broken(entry.name, package, describe_error(error))

    def mark_broken(self, name: str, package: str, error: str) -> None:
        """Remember that a plugin failed, and warn about it once."""
        broken = BrokenPlugin(name, package, error.rstrip("."))
        if broken not in self.broken:
            self.broken.append(broken)
            warn_of_plugin(f"{broken} Everything else works. {DISABLE_VARIABLE}={name} silences this.")

    def implementations(self, hook: str, arguments: Mapping[str, object]) -> Iterator[tuple[str, partial[Any]]]:
        """Yield each plugin's implementation on its own: pluggy's call would end at the first that raises."""
        for implementation in reversed(getattr(self.manager.hook, hook).get_hookimpls()):
            values = (arguments[name] for name in implementation.argnames)
            yield implementation.plugin_name, partial(implementation.function, *values)


def warn_of_plugin(message: str) -> None:
    """Warn with a `PluginWarning`."""
    warnings.warn(message, PluginWarning, stacklevel=2)


@contextmanager
def warn_if_slow(what: str, name: str) -> Iterator[None]:
    """Warn, from another thread, if the block takes longer than ``SLOW``. Nothing can stop an import safely."""
    refused: list[PluginWarning] = []

    def warn() -> None:
        way_out = f"interrupt with Ctrl-C, and leave it out with {DISABLE_VARIABLE}={name}"
        try:
            warn_of_plugin(f"{what} after {SLOW:g} s. alignkit waits for it; {way_out}.")
        except PluginWarning as error:  # warnings are errors here: it is raised when the block ends
            refused.append(error)

    timer = threading.Timer(SLOW, warn)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
    if refused:
        raise refused[0]


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
