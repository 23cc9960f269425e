"""Plans and reports: what they say, and that they can be read without any other file."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

import alignkit
from alignkit import Alignment, SymmetryGraph, Task, interpolate
from alignkit.errors import ReportError, WeightsError
from alignkit.reports import (
    Lines,
    Losses,
    MergeLosses,
    Picture,
    Report,
    Section,
    Table,
    Text,
    html,
    markdown,
    pictures_folder,
    write_report,
)
from helpers.weight_files import SPEC, net, weights

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def graph() -> SymmetryGraph:
    return SymmetryGraph.from_spec(SPEC, weights(0))


class Page(HTMLParser):
    """Tags that were opened and not closed, links to anywhere, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


# ---------------------------------------------------------------------- documents


HOSTILE = "<script>alert('x')</script> | `a*b` [c](d)"
REPORT = Report(
    f"About {HOSTILE}",
    (
        Section("Words", (Text(HOSTILE), Text("two\nlines", verbatim=True))),
        Section("Numbers", (Table(("name", "value"), ((HOSTILE, "1.5"), ("b|c", "-"))),)),
        Section("Pictures", (Picture("one", "the first", PNG + b"1"), Picture("two", "the second", PNG + b"2"))),
    ),
)


def test_html_is_one_page_without_scripts_or_links() -> None:
    page = Page(html(REPORT))
    assert page.open == []
    assert "script" not in page.tags
    assert [base64.b64decode(link.removeprefix("data:image/png;base64,")) for link in page.links] == [
        PNG + b"1",
        PNG + b"2",
    ]


def test_markdown_has_its_pictures_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "my report.md"
    write_report(REPORT, path)
    text = path.read_text()
    assert re.findall(r"\]\((.*?\.png)\)", text) == ["my%20report_files/one.png", "my%20report_files/two.png"]
    assert (pictures_folder(path) / "two.png").read_bytes() == PNG + b"2"
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_a_report_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"end the name of a report in \.html"):
        write_report(REPORT, tmp_path / "report.txt")
    with pytest.raises(WeightsError, match="does not exist"):
        write_report(REPORT, tmp_path / "nowhere" / "report.html")
    (tmp_path / "r_files").write_text("mine")
    with pytest.raises(WeightsError, match="r_files: it is a file"):
        write_report(REPORT, tmp_path / "r.md")
    assert [path.name for path in tmp_path.iterdir()] == ["r_files"]


# ---------------------------------------------------------------------- reports of jobs


def losses(a: dict[str, Tensor], b: dict[str, Tensor], aligned: dict[str, Tensor]) -> MergeLosses:
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(5))
    model = net()
    model.load_state_dict(a)
    task = Task(net(), (inputs, model(inputs).detach()), "mse")
    plain, middle = (alignkit.average([a, end]) for end in (b, aligned))
    parents = Losses({"A": task.evaluate(a), "B": task.evaluate(b)}, None)
    averages = Losses({"unaligned": task.evaluate(plain), "aligned": task.evaluate(middle)}, None)
    return MergeLosses(parents, averages, Lines(interpolate(task, a, b, 5), interpolate(task, a, aligned, 5)))


def test_the_report_of_a_solution_says_what_the_solution_says(graph: SymmetryGraph) -> None:
    a = weights(0)
    b = Alignment.random(graph, 3).apply(a)
    pair = graph.bind(a, b)
    solution = alignkit.solve(pair)
    check = graph.verify(net(), torch.randn(2, 4))
    measured = losses(a, b, solution.apply(b))
    report = solution.report("A and B", pair=pair, check=check, losses=measured, facts={"A": "a.pt"})
    text = markdown(report)
    assert [picture.name for picture in report.pictures] == ["line", "gain", "units", "matrices"]
    assert all(picture.png.startswith(PNG) for picture in report.pictures)
    assert f"| squared distance of A and B | {solution.objective_before:.5g} | 0 |" in text
    assert f"| h | 6 | {solution.moved['h']} | {solution.gain['h']:.5g} | 100.0% |" in text
    assert "3 random reorderings of all groups change the outputs by at most" in text
    assert "2.bias | the spec fixes all its axes" in text
    assert "as good as the worse of the two networks or better" in text
    assert f"| loss barrier | {measured.lines.identity.barrier:.5g} |" in text


def test_the_report_tells_when_alignment_did_not_help(graph: SymmetryGraph) -> None:
    a, b = weights(0), weights(1)
    pair = graph.bind(a, b)
    solution = alignkit.solve(pair, solver="identity")
    text = markdown(solution.report("A and B", losses=losses(a, b, b)))
    assert "The average is not better for it" in text
    assert "Nothing moved" in text
    assert "Not done" in text
    assert "the identity leaves every unit at its place" in text
    assert "Units before and after" not in text


def test_the_report_without_groups_has_no_pictures() -> None:
    fixed = SymmetryGraph.from_spec({"w": ". ."}, {"w": (2, 2)})
    pair = fixed.bind({"w": torch.ones(2, 2)}, {"w": torch.ones(2, 2)})
    report = alignkit.solve(pair).report("A and B", pair=pair)
    assert list(report.pictures) == []
    assert "no unit may change its place" in html(report)


def test_reports_of_the_other_jobs(graph: SymmetryGraph, tmp_path: Path) -> None:
    a, names = weights(0), ["a.pt", "b.pt", "c.pt"]
    models = [a, *(Alignment.random(graph, seed).apply(weights(0)) for seed in (1, 2))]
    pair = graph.bind(a, models[1])
    module = net()
    reports = {
        "many": (alignkit.align_many(graph, *models).report("Three", names=names), "mean squared distance of a pair"),
        "canonical": (alignkit.canonicalize(graph, models, a).report("All", names=names), "networks a second"),
        "distance": (alignkit.distance(graph, a, models[1]).report("Two", pair=pair), "up to permutation"),
        "check": (alignkit.check(module, torch.ones(1, 4), graph=graph).report("Check"), "Passed"),
        "merge": (alignkit.merge(graph, *models).report("Merged", names=names), "mean squared distance of a pair"),
        "transport": (alignkit.transport(pair, tuned=models[2]).report("Carried", pair=pair), "task vector"),
        "comparison": (
            alignkit.compare(pair, solvers=["weight_matching"]).report("Solvers"),
            "weight_matching",
        ),
    }
    for name, (report, said) in reports.items():
        page = html(report)
        assert said in page, name
        assert Page(page).open == []
        write_report(report, tmp_path / f"{name}.md")
        assert (tmp_path / f"{name}.md").read_text().startswith("# ")
