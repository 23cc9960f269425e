"""Switches of commands: groups of them are spread and put together."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit.cli.switches import ArchitectureSwitches, command
from alignkit.errors import UsageError


def test_groups_of_switches_are_spread_and_put_together() -> None:
    seen: list[Any] = []

    @command
    def job(one: int, architecture: ArchitectureSwitches, two: str = "x") -> None:
        seen.append((one, architecture, two))

    job(one=1, spec=None, model="m", two="y")
    assert seen == [(1, ArchitectureSwitches(None, "m"), "y")]
    with pytest.raises(UsageError, match="two switches of one name"):

        @command
        def twice(spec: int, architecture: ArchitectureSwitches) -> None: ...
