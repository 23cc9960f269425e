"""The glossary and the code keep each other: every page uses it, and every name in it exists."""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GLOSSARY = (DOCS / "glossary.md").read_text(encoding="utf-8")
ANCHORS = {
    *(title.lower().replace(" ", "-") for title in re.findall(r"^### (.+)$", GLOSSARY, re.MULTILINE)),
    *re.findall(r"\{#([\w-]+)\}", GLOSSARY),
}
PAGES = sorted(
    path
    for path in DOCS.rglob("*.md")
    if path.name not in ("glossary.md", "changelog.md")
    and path.relative_to(DOCS).parts[0] not in ("reference", "plugin-template")
)
ENTRIES = dict(re.findall(r"^### (.+?)\n(.+?)(?=^#|\Z)", GLOSSARY, re.MULTILINE | re.DOTALL))


def names_of(entry: str) -> list[str]:
    """The names in Python that an entry ends with."""
    return re.findall(r"`([A-Za-z_][\w.]*)`", " ".join(entry.split()).partition("In Python:")[2])


@cache
def definitions() -> tuple[dict[str, set[str]], set[str]]:
    """Attributes of every class of the package by its name, and the names of all functions and type aliases."""
    classes: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    others: set[str] = set()
    for path in (ROOT / "alignkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = set(attributes(node))
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
            elif isinstance(node, ast.FunctionDef):
                others.add(node.name)
            elif isinstance(node, ast.Assign):
                others |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for name in classes:
        inherited = list(bases[name])
        while inherited:
            base = inherited.pop()
            classes[name] |= classes.get(base, set())
            inherited += bases.get(base, [])
    return classes, others


def attributes(definition: ast.ClassDef) -> Iterator[str]:
    for node in ast.walk(definition):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    yield target.id
                elif isinstance(target, ast.Attribute):
                    yield target.attr


def exists(name: str) -> bool:
    classes, others = definitions()
    first, _, rest = name.partition(".")
    if first == "alignkit":
        try:
            return pkgutil.resolve_name(name) is not None
        except (AttributeError, ImportError):
            return False
    return rest in classes[first] if rest and first in classes else name in classes or name in others


@pytest.mark.parametrize("word", ENTRIES)
def test_the_names_of_an_entry_exist(word: str) -> None:
    entry = ENTRIES[word]
    assert [name for name in names_of(entry) if not exists(name)] == []


def test_there_are_names_to_look_for() -> None:
    assert len(ENTRIES) > 40
    assert sum(bool(names_of(entry)) for entry in ENTRIES.values()) > 40
    assert not exists("Alignment.perms")
    assert not exists("PermutationGraph")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_a_page_links_to_the_glossary(page: Path) -> None:
    links = re.findall(r"\]\((?:\.\./)*glossary\.md(?:#([\w-]+))?\)", page.read_text(encoding="utf-8"))
    assert links, "link the first use of a word of the glossary"
    assert [anchor for anchor in links if anchor and anchor not in ANCHORS] == []


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (ROOT / "alignkit").glob("*/__init__.py")))
def test_the_house_has_a_line_for_each_room(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS / "pictures"))
    pytest.importorskip("matplotlib")
    rooms = import_module("rooms")
    assert room in {name for floor in rooms.floors() for name in floor}
    assert len(rooms.about(room)) > 20
