"""All fuzzers, and how many of a run's inputs are of each."""

from __future__ import annotations

from collections.abc import Iterable

from fuzzers import (
    alignments,
    arguments,
    commands,
    files,
    graphs,
    modules,
    options,
    plugins,
    state_dicts,
    symmetries,
    tasks,
)
from fuzzers.engine import Fuzzer

FUZZERS = {
    fuzzer.name: fuzzer
    for fuzzer in (
        Fuzzer("graphs", graphs.make, 5),
        Fuzzer("state_dicts", state_dicts.make, 5),
        Fuzzer("alignments", alignments.make, 5),
        Fuzzer("options", options.make, 1),
        Fuzzer("modules", modules.make, 0.6),
        Fuzzer("symmetries", symmetries.make, 0.4),
        Fuzzer("commands", commands.make, 0.7),
        Fuzzer("files", files.make, 3),
        Fuzzer("tasks", tasks.make, 3),
        Fuzzer("plugins", plugins.make, 2),
        Fuzzer("arguments", arguments.make, 5),
    )
}
"""By name; shares are larger where an input costs less."""


def shared_out(names: Iterable[str], inputs: int) -> dict[str, int]:
    """Share a number of inputs out among fuzzers, at least one for each."""
    chosen = [FUZZERS[name] for name in names]
    total = sum(fuzzer.share for fuzzer in chosen)
    return {fuzzer.name: max(1, round(inputs * fuzzer.share / total)) for fuzzer in chosen}
