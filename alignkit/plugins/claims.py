"""Names that plugins claim with their offers: a name is usable while exactly one package claims it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeAlias, TypeVar

from alignkit.errors import AlignkitError, PluginError
from alignkit.plugins.loading import DISABLE_VARIABLE, PluginSet, PluginWarning, warn_if_slow
from alignkit.text import describe_error, did_you_mean, one_line

MOST = 10_000
"""Maximum number of offers of one plugin to one hook. An answer that never ends is cut off here."""

T = TypeVar("T")
Reader: TypeAlias = Callable[[object], Iterator[tuple[str, T]]]
"""Checks the answer to a hook and yields its offers by name; raises `PluginError`."""


@dataclass(frozen=True)
class Claims(Generic[T]):
    """What plugins offer to one hook."""

    offers: dict[str, list[tuple[str, T]]]
    """For each name the packages that claim it, each with what it offers."""
    plugins: PluginSet
    what: str
    """What is offered, for messages: ``"solver"``."""

    @classmethod
    def collect(cls, plugins: PluginSet, what: str, hook: str, read: Reader[T]) -> Claims[T]:
        """Ask every plugin for what it offers to a hook. An answer that cannot be read breaks only its own plugin."""
        claims: dict[str, list[tuple[str, T]]] = {}
        for key, call in plugins.implementations(hook, {}):
            package = plugins.packages[key]
            plugin = key.partition(":")[2] or key
            try:
                with warn_if_slow(f"Plugin {plugin!r} ({package}) is still working on {hook}", plugin):
                    offers = list(islice(read(call()), MOST + 1))
                if len(offers) > MOST:
                    raise PluginError(f"it offers more than {MOST} things; does its generator end?")
            except (KeyboardInterrupt, PluginWarning):
                raise
            except BaseException as error:  # third-party code: exits and panics too
                if package == "alignkit":
                    raise
                reason = one_line(error) if isinstance(error, AlignkitError) else describe_error(error)
                plugins.mark_broken(plugin, package, f"{hook}: {reason}")
                continue
            for name, offer in offers:
                claimed = claims.setdefault(name, [])
                if not any(other is offer and by == package for by, other in claimed):  # a package may repeat itself
                    claimed.append((package, offer))
        return cls(claims, plugins, what)

    @property
    def usable(self) -> dict[str, tuple[str, T]]:
        """Names that one package claims, in alphabetical order, each with the package and what it offers."""
        return {name: offers[0] for name, offers in sorted(self.offers.items()) if len(offers) == 1}

    @property
    def contested(self) -> dict[str, tuple[str, ...]]:
        """Names that cannot be used because several claim them, with the packages that do."""
        return {n: tuple(p for p, _ in offers) for n, offers in sorted(self.offers.items()) if len(offers) > 1}

    def find(self, name: str, error: type[AlignkitError]) -> T:
        """Return what is offered under a name; where no plugin or more than one offers it, raise an ``error``.

        Broken and disabled plugins are named.
        """
        offers = self.offers.get(name, [])
        if len(offers) == 1:
            return offers[0][1]
        packages = {package for package, _ in offers}
        what, by = f"{self.what} {name!r}", join_names(packages)
        if len(packages) == 1:
            raise error(f"{what} is offered {len(offers)} times by {by}: rename all but one.")
        if packages:
            disable = f"{DISABLE_VARIABLE}=<entry point or package name>"
            raise error(f"{what} is offered by {by}. Disable all but one: {disable}.")
        message = f"no {self.what} is named {name!r}.{did_you_mean(name, self.usable)}"
        message += f" Available: {', '.join(self.usable) or 'none'}."
        message += "".join(f" {broken}" for broken in self.plugins.broken)
        if self.plugins.skipped:
            message += f" Disabled by {DISABLE_VARIABLE}: {', '.join(sorted(self.plugins.skipped))}."
        raise error(message)


def join_names(names: Iterable[str]) -> str:
    """Return sorted names as ``"a and b"``."""
    return " and ".join(sorted(names))
