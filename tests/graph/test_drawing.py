"""A graph as a report, as Mermaid and Graphviz, and as a picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alignkit import SymmetryGraph
from alignkit.errors import AlignkitError, GraphError
from helpers.small_graphs import ATTENTION, MLP, TRACED


class TestDrawings:
    def test_the_report_tells_groups_and_what_is_fixed(self) -> None:
        graph = SymmetryGraph.from_spec(
            {**ATTENTION.spec(), "fixed": "."}, {**{n: t.shape for n, t in ATTENTION.tensors.items()}, "fixed": (3,)},
            provenance=TRACED,
        )  # fmt: skip
        report = graph.report()
        assert "4 tensors, 2 groups, 2 families, 1 component" in report
        assert "traced on fake tensors" in report
        lines = report.splitlines()
        assert "    qk   4 x 3 units  1 tensor" in lines
        assert "  out.weight, axis 0: pinned by aten.index in block.0" in lines
        assert "  aten.foo" in lines
        assert lines[lines.index("Tensors on which no group acts:") + 1] == "  fixed"

    def test_the_report_of_a_graph_without_groups(self) -> None:
        assert "No group" in SymmetryGraph.from_spec({"w": "."}, {"w": (2,)}).report()

    def test_mermaid_names_every_node_and_axis(self) -> None:
        text = ATTENTION.mermaid()
        assert text.startswith("flowchart")
        for part in (
            "heads<br/>4 units",
            "qk<br/>4 x 3 units",
            "model (heads v[heads])",
            "scale<br/>scalar",
            "|axis 1|",
        ):
            assert part in text

    def test_graphviz_names_every_node_and_escapes(self) -> None:
        graph = SymmetryGraph.from_spec({'odd "name"': "h"}, {'odd "name"': (2,)})
        assert '"odd \\"name\\"\\nh"' in graph.dot()
        assert "&quot;name&quot;" in graph.mermaid()

    @pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
    def test_the_picture_is_written(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"graph{suffix}"
        ATTENTION.draw(path)
        assert path.stat().st_size > 1000
        assert list(tmp_path.iterdir()) == [path]

    def test_the_picture_labels_every_layer_and_group(self) -> None:
        texts = {text.get_text() for text in MLP.draw().axes[0].texts}
        assert {"fc1", "fc2", "fc3", "h1", "h2", "h1 (4)", "h2 (5)"} <= texts

    def test_repeated_layers_are_drawn_once(self) -> None:
        shapes: dict[str, tuple[int, ...]] = {"embed.weight": (9, 4)}
        spec = {"embed.weight": ". model"}
        for block in range(6):
            shapes |= {f"blocks.{block}.up.weight": (8, 4), f"blocks.{block}.down.weight": (4, 8)}
            spec |= {f"blocks.{block}.up.weight": f"h{block} model", f"blocks.{block}.down.weight": f"model h{block}"}
        figure = SymmetryGraph.from_spec(spec, shapes).draw()
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert "blocks.0.up" in texts
        assert "blocks.1.up" not in texts
        assert "... to blocks.5: 5 more like this" in texts

    def test_layers_of_another_width_are_drawn_themselves(self) -> None:
        spec, shapes = {}, {}
        for block, width in enumerate((8, 8, 9, 8)):
            spec |= {f"b.{block}.up": f"h{block} .", f"b.{block}.down": f". h{block}"}
            shapes |= {f"b.{block}.up": (width, 4), f"b.{block}.down": (4, width)}
        texts = {text.get_text() for text in SymmetryGraph.from_spec(spec, shapes).draw().axes[0].texts}
        assert {"b.0", "b.1", "b.2", "b.3"} <= texts

    def test_a_graph_without_tensors_can_be_drawn(self, tmp_path: Path) -> None:
        SymmetryGraph.from_spec({}, {}).draw(tmp_path / "empty.png")

    def test_an_unknown_format_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(GraphError, match=r"graph\.xyz"):
            MLP.draw(tmp_path / "graph.xyz")
        assert not list(tmp_path.iterdir())

    def test_without_matplotlib_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "alignkit.graph.drawing.picture", raising=False)
        for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(AlignkitError, match=r'pip install "alignkit\[plot\]"'):
            MLP.draw()
