"""Pictures of lines between networks and of alignments; matplotlib is imported only when one is drawn."""

from alignkit.plotting.pictures import Curve, bar_chart, check_picture, plot_alignment, plot_interpolations, save_figure

__all__ = ["Curve", "bar_chart", "check_picture", "plot_alignment", "plot_interpolations", "save_figure"]
