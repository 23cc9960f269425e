"""What the README and the docs show runs as it stands, and they leave nothing out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import alignkit
from alignkit import builders, hookspecs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PAGES = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_of_the_readme_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {"__name__": "readme"})


def test_the_solver_of_the_readme_solves() -> None:
    found: dict[str, type[alignkit.Solver[alignkit.SolverOptions]]] = {"__name__": "readme"}  # type: ignore[dict-item]
    exec(next(block for block in BLOCKS if "hookimpl" in block), found)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    pair = builders.mlp(model)
    shuffled = alignkit.Alignment.random(pair, seed=1).apply(model)
    solution = alignkit.solve(pair, model, shuffled, solver=found["RandomSearch"], max_steps=100)
    assert solution.objective_after == 0  # 6 orders, 100 tries


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", navigation))


def test_every_public_name_is_in_the_reference() -> None:
    modules = ("alignkit.errors", "alignkit.hookspecs", "alignkit.graph.builders")
    covered = {name for module in modules for name in dir(__import__(module, fromlist=["x"]))}
    missing = [name for name in alignkit.__all__ if not re.search(rf"::: alignkit\..*\b{name}\b", PAGES)]
    assert [name for name in missing if name not in covered] == []


@pytest.mark.parametrize("hook", [name for name in dir(hookspecs) if name.startswith("alignkit_")])
def test_every_hook_has_documentation(hook: str) -> None:
    assert len((getattr(hookspecs, hook).__doc__ or "").strip()) > 40
    assert "::: alignkit.hookspecs" in PAGES
