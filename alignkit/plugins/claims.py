"""Names that plugins claim with their offers: a name is usable while exactly one package claims it.

What alignkit itself offers is claimed first, and no other package can take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeAlias, TypeVar

from alignkit.errors import AlignkitError, PluginError, PluginWarning
from alignkit.plugins.loading import DISABLE_VARIABLE, PluginSet, warn_if_slow
from alignkit.process_state import SWITCHES, watched_state
from alignkit.text import describe_error, did_you_mean, list_some, one_line

MOST = 10_000
"""Maximum number of offers of one plugin to one hook. An answer that never ends is cut off here."""

T = TypeVar("T")
Reader: TypeAlias = Callable[[object], Iterator[tuple[str, T]]]
"""Checks the answer to a hook and yields its offers by name; raises `PluginError`."""
Cover: TypeAlias = Callable[[str], Iterable[str]]
"""Yields the names under which a name may be taken: itself, and those that mean the same or more."""


@dataclass(frozen=True)
class Claims(Generic[T]):
    """What plugins offer to one hook."""

    offers: dict[str, list[tuple[str, T]]]
    """For each name the packages that claim it, each with what it offers."""
    plugins: PluginSet
    what: str
    """What is offered, for messages: ``"solver"``."""

    @classmethod
    def collect(cls, plugins: PluginSet, what: str, hook: str, read: Reader[T], cover: Cover) -> Claims[T]:
        """Ask every plugin for what it offers to a hook. An answer that cannot be read breaks only its own plugin.

        Offers under a name of alignkit's own are left out, with one warning; the others of the same plugin count.
        """
        claims: dict[str, list[tuple[str, T]]] = {}
        built_in: set[str] = set()
        calls = sorted(plugins.implementations(hook, {}), key=lambda pair: pair[0] not in plugins.built_in)
        for key, call in calls:
            package, is_own = plugins.packages[key], key in plugins.built_in
            plugin = key.partition(":")[2] or key
            try:
                with (
                    warn_if_slow(f"Plugin {plugin!r} ({package}) is still working on {hook}", plugin),
                    watched_state(f"plugin {plugin!r} ({package}), at work on {hook},", SWITCHES),
                ):
                    offers = list(islice(read(call()), MOST + 1))
                if len(offers) > MOST:
                    raise PluginError(f"it offers more than {MOST} things; does its generator end?")
            except KeyboardInterrupt as interrupt:
                interrupt.add_note(f"Interrupted while plugin {plugin!r} ({package}) was at work on {hook}.")
                raise
            except PluginWarning:
                raise
            except BaseException as error:  # third-party code: exits and panics too
                if is_own:
                    raise
                reason = one_line(error) if isinstance(error, AlignkitError) else describe_error(error)
                plugins.mark_broken(plugin, package, f"{hook}: {reason}")
                continue
            if is_own:
                built_in.update(name for name, _ in offers)
            elif taken := [name for name, _ in offers if not built_in.isdisjoint(cover(name))]:
                offers = [(name, offer) for name, offer in offers if name not in taken]
                names = list_some([repr(name) for name in dict.fromkeys(taken)], 3)
                plugins.mark_broken(plugin, package, f"{hook}: it offers {names}, where alignkit's own {what} stays")
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
