"""The how-to pages of the eight jobs run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (
    "merge",
    "recipes",
    "check",
    "compare",
    "align-many",
    "transport",
    "distance",
    "canonicalize",
    "fold",
    "rotate",
    "widen",
    "plug-in-a-solver",
)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "pictures"))
    from job_files import networks

    before = set(networks().iterdir())
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r'^```python exec="on"[^\n]*\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    lines: list[str] = []  # as in the build of the docs, where only what a page itself prints is shown
    names: dict[str, object] = {"__name__": "page", "print": lines.append}
    try:
        for block in blocks:
            exec(compile(block, f"{page}.md", "exec"), names)
    finally:
        remove(set(networks().iterdir()) - before)
    printed = "\n".join(lines)
    assert "$ alignkit " in printed
    assert "Traceback" not in printed


def remove(paths: set[Path]) -> None:
    for path in sorted(paths, reverse=True):
        for inner in sorted(path.rglob("*"), reverse=True):
            inner.unlink() if inner.is_file() else inner.rmdir()
        path.unlink() if path.is_file() else path.rmdir()
