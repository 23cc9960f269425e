"""The rules of the house: what stands where in the package, and that texts name only what is there."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import alignkit
from alignkit.checkpoints.folder import RUN_RECORD

ROOT = Path(__file__).parents[1]
PACKAGE = Path(alignkit.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
NOT_OF_A_ROOM = {"benchmarks", "coverage", "gpu", "helpers", "reliability"}
"""Folders of tests/ that belong to no room: scripts that are run by name, and what tests share."""
TEXTS = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*") if path.suffix in {".md", ".py"}),
    *sorted((ROOT / "tests").rglob("*.py")),
]


def test_no_two_classes_have_one_name() -> None:
    homes = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_no_room_has_the_name_of_a_public_function() -> None:
    functions = [name for name in alignkit.__all__ if inspect.isroutine(getattr(alignkit, name))]
    assert len(functions) > 10
    assert [name for name in functions if importlib.util.find_spec(f"alignkit.{name}")] == []


def test_the_top_of_the_package_shows_public_names_and_sub_packages_only() -> None:
    shown = dir(alignkit)
    assert sorted(set(shown)) == shown
    assert set(alignkit.__all__) <= set(shown)
    rooms = set(shown) - set(alignkit.__all__)
    assert {"deepalign", "plotting", "reports", "testing", "training", "zoo"} <= rooms <= ROOMS
    code = f"import alignkit\nfor name in {sorted(rooms)}: print(getattr(alignkit, name).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [f"alignkit.{name}" for name in sorted(rooms)], done.stderr


@pytest.mark.parametrize("switch", ["--version", "--help"])
def test_questions_about_the_command_line_do_not_import_torch(switch: str) -> None:
    code = (
        "import sys\nfrom alignkit.cli import main\n"
        f"sys.argv = ['alignkit', {switch!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "alignkit" in done.stdout.lower() or alignkit.__version__ in done.stdout


def test_tests_stand_in_the_rooms_of_what_they_test() -> None:
    folders = {path.parent.relative_to(ROOT / "tests").parts[:1] for path in (ROOT / "tests").rglob("*.py")}
    assert {name for folder in folders for name in folder} <= ROOMS | NOT_OF_A_ROOM


def test_no_test_imports_another() -> None:
    imports = []
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imports += [f"{path.name}: {name}" for name in names if re.search(r"(^|\.)(test_\w+|conftest)$", name)]
    assert imports == []


FORMATS = {
    name
    for path in MODULES
    for name in re.findall(r'(?i)format\W.*"(alignkit\.\w+)"', path.read_text(encoding="utf-8"))
}
"""Names of file formats, such as those of alignments: dotted, and not modules."""


def exists(dotted: str) -> bool:
    """Tell whether a dotted name is a module, something in one, or the name of a file format."""
    if dotted in FORMATS or dotted == RUN_RECORD:
        return True
    found: object = alignkit
    name = "alignkit"
    for part in dotted.split(".")[1:]:
        name = f"{name}.{part}"
        if hasattr(found, part):
            found = getattr(found, part)
        elif inspect.ismodule(found) and hasattr(found, "__path__") and importlib.util.find_spec(name):
            found = importlib.import_module(name)
        else:
            return part in getattr(found, "__annotations__", {})  # a field of a class without a default
    return True


def test_texts_name_only_modules_and_files_that_exist() -> None:
    missing = defaultdict(list)
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        names = set(re.findall(r"(?<![\w./-])alignkit(?:\.[A-Za-z_]\w*)+(?![\w/-])", text))
        files = set(re.findall(r"(?<![\w./-])(?:alignkit|tests|docs|plugins)/[\w./-]*\.(?:py|md)\b", text))
        wrong = [name for name in names if not exists(name)] + [file for file in files if not (ROOT / file).exists()]
        if wrong:
            missing[str(path.relative_to(ROOT))] = sorted(wrong)
    assert missing == {}
