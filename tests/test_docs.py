"""What the README and the docs show runs as it stands, and they leave nothing out."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import alignkit
from alignkit import cli
from alignkit.plugins import hookspecs
from alignkit.plugins.plugin_registry import Registry
from fuzzers.all import FUZZERS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
TEMPLATE = ROOT / "docs" / "plugin-template"
FILES = [path for path in sorted((ROOT / "docs").rglob("*.md")) if not path.is_relative_to(TEMPLATE)]
TEXTS = {str(path.relative_to(ROOT / "docs")): path.read_text(encoding="utf-8") for path in FILES}
PAGES = "\n".join(TEXTS.values())
PROSE = "\n".join(text for name, text in TEXTS.items() if not name.startswith("reference/"))
HOOKS = [name for name in dir(hookspecs) if name.startswith("alignkit_")]
SOLVERS = Registry([]).solvers()


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_of_the_readme_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {"__name__": "readme"})


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = set(TEXTS)
    assert pages == set(re.findall(r"[\w/-]+\.md", navigation))


def test_every_public_name_is_in_the_reference() -> None:
    modules = ("alignkit.errors", "alignkit.plugins.hookspecs", "alignkit.graph.builders")
    covered = {name for module in modules for name in dir(__import__(module, fromlist=["x"]))}
    missing = [name for name in alignkit.__all__ if not re.search(rf"::: alignkit\..*\b{name}\b", PAGES)]
    assert [name for name in missing if name not in covered] == []


SHOWN = re.compile(r"^( *)```(?!python exec(?![^\n]*source=))\w+[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
"""Blocks of code that readers see: all but those that only run."""


@pytest.mark.parametrize("name", [*TEXTS, "README.md"])
def test_code_has_80_columns(name: str) -> None:
    rows = [row for block in SHOWN.finditer(TEXTS.get(name, README)) for row in block[2].splitlines()]
    assert [row for row in rows if len(row) > 80] == []


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_an_example_that_runs(hook: str) -> None:
    assert len((getattr(hookspecs, hook).__doc__ or "").strip()) > 40
    assert "::: alignkit.plugins.hookspecs" in PAGES
    section = TEXTS["plugins.md"].partition(f"\n## {hook}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```python exec=.*?\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert f"def {hook}(self" in block
    assert f"def {hook}(" in (TEMPLATE / "alignkit_mine.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_plugin_guide_runs() -> None:
    blocks = re.findall(r"^```python exec=.*?\n(.*?)^```", TEXTS["plugins.md"], re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(HOOKS) + 1
    code = "import alignkit\n" + "\n".join(blocks)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "groups without the rule: [] with it: ['one']" in done.stdout


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_and_option_is_in_the_docs(name: str) -> None:
    """The reference shows all submodules of alignkit.solvers; a page of prose says what the solver is for."""
    info = SOLVERS[name]
    assert re.search(r"::: alignkit\.solvers\n.*show_submodules: true", TEXTS["reference/solvers.md"], re.DOTALL)
    for part in (info.solver, info.options):
        module = part.__module__
        shared = (alignkit.SolverOptions, alignkit.IterativeOptions)
        assert module.startswith("alignkit.solvers.") or part in shared, f"{part} is not shown"
        assert not any(piece.startswith("_") for piece in (*module.split("."), part.__name__)), f"{part} is hidden"
        assert len((part.__doc__ or "").strip()) > 20
    assert re.search(rf"\b{name}\b", PROSE + README)
    undescribed = [option for option, field in info.options.model_fields.items() if not field.description]
    assert undescribed == []


def command_reference() -> str:
    """What the page about the command line shows: it is made by running its code."""
    (block,) = re.findall(r"^```python exec=.*?\n(.*?)^```", TEXTS["reference/cli.md"], re.DOTALL | re.MULTILINE)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "reference/cli.md", "exec"), {"__name__": "cli"})
    return printed.getvalue()


def test_every_command_and_its_options_are_in_the_docs() -> None:
    shown = command_reference()
    program = typer.main.get_command(cli.app)
    commands = program.commands  # type: ignore[attr-defined]
    assert len(commands) > 8
    for name, command in commands.items():
        section = shown.partition(f"\n## alignkit {name}\n")[2].partition("\n## alignkit")[0]
        assert "Example:" in section, f"{name} has no example, or is not shown"
        long = [option for p in command.params for option in p.opts if option.startswith("--") and not p.hidden]
        assert [option for option in long if option not in section] == [], name


def test_job_commands_are_those_with_the_four_switches() -> None:
    text = TEXTS["reference/cli.md"]
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    switches = {name: {option for p in command.params for option in p.opts} for name, command in commands.items()}
    jobs = {name for name, options in switches.items() if {"--dry-run", "--report", "--json", "--force"} <= options}
    sentences = re.findall(r"[^.]*\bjob commands?\b[^.]*", " ".join(text.split()))
    assert jobs == {name for s in sentences for name in re.findall(r"`([a-z-]+)`", s) if not name.startswith("--")}


@pytest.mark.parametrize(
    "package", sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")), ids=lambda p: p.name
)
def test_every_plugin_of_the_repository_is_in_the_docs(package: Path) -> None:
    assert f"plugins/{package.name}" in TEXTS["plugins.md"]
    readme = (package / "README.md").read_text(encoding="utf-8")
    code = "\n".join(path.read_text(encoding="utf-8") for path in package.glob("alignkit_*/*.py"))
    for options in re.findall(r"class \w+\((?:Solver|Iterative)Options\):\n(.*?)\n\n\n", code, re.DOTALL):
        for option in re.findall(r"^    (\w+): ", options, re.MULTILINE):
            assert f"`{option}`" in readme, f"option {option} is not in the README of {package.name}"


@pytest.mark.parametrize(("file", "test"), sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES))))
def test_tests_that_pages_name_are_there(file: str, test: str) -> None:
    assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_fuzzer_is_on_the_page_of_reliability() -> None:
    assert set(FUZZERS) == set(re.findall(r"^\| `(\w+)` \| ", TEXTS["reliability.md"], re.MULTILINE))


@pytest.mark.parametrize(
    ("urls", "link"),
    [
        ("", ""),
        ('[project.urls]\nRepository = "https://here.example/alignkit"', "https://here.example/alignkit"),
        ('[project.urls]\nhomepage = "https://page.example"\nSource = "https://here.example"', "https://here.example"),
        ('[project.urls]\nFunding = "https://money.example"', ""),
    ],
)
def test_pages_link_the_repository_that_the_metadata_name(urls: str, link: str) -> None:
    page_foot = runpy.run_path(str(ROOT / "docs" / "pictures" / "version.py"))
    assert page_foot["repository"](f'[project]\nname = "alignkit"\n{urls}') == link


AVERAGES = {
    "as they are": ["plain"],
    "the best permutation, from weights alone": ["permutations, weight_matching", "permutations, frank_wolfe"],
    "permuted by [what they write](docs/deepalign.md#own-texts), no data": ["permutations, deepalign"],
    "`--symmetries all`, from weights alone": ["all symmetries"],
    "then 200 steps on what they write, no data": ["all symmetries, deepalign"],
    "then 200 steps on text without labels": ["all symmetries, then 200 steps without labels"],
}
"""Rows of the README's table of transformers, and those of ``docs/results/seeds.json`` of which each is the best."""


@pytest.mark.parametrize("average", AVERAGES)
def test_the_readme_says_what_was_measured_of_transformers(average: str) -> None:
    measured = json.loads((ROOT / "docs" / "results" / "seeds.json").read_text(encoding="utf-8"))
    best = []
    for kind in ("gpt2", "llama"):
        rows = next(
            table["rows"] for table in measured if (table["kind"], table["width"], table["layers"]) == (kind, 128, 2)
        )
        best.append(min(row["excess"] for row in rows if row["row"] in AVERAGES[average]))
    assert f"| {average} | {best[0]:.2f} | {best[1]:.2f} |" in README
