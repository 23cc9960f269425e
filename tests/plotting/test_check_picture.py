"""What a picture can be written as is told without drawing one."""

from pathlib import Path

import pytest

from alignkit.errors import TaskError
from alignkit.plotting import check_picture, save_figure

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.mark.parametrize("suffix", [".png", ".PDF", ".svg"])
def test_a_format_is_told_and_no_figure_is_left_to_notebooks(suffix: str) -> None:
    before = pyplot.get_fignums()
    assert check_picture(Path(f"out{suffix}")) == suffix.lstrip(".").lower()
    assert pyplot.get_fignums() == before


def test_a_picture_that_is_refused_leaves_no_figure_either(tmp_path: Path) -> None:
    figure = pyplot.figure()
    before = pyplot.get_fignums()
    for path in (tmp_path / "out.txt", tmp_path / "missing" / "out.docx"):
        with pytest.raises(TaskError, match="a picture cannot be written as"):
            save_figure(figure, path)
    assert pyplot.get_fignums() == before
    pyplot.close(figure)
