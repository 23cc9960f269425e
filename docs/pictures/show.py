"""Put figures into pages: a picture with a text for readers who cannot see it, which scrolls where it is too wide."""

from __future__ import annotations

import base64
import io

from matplotlib.figure import Figure


def picture(figure: Figure, alt: str, least: int = 0) -> str:
    """The figure as HTML.

    Args:
        figure: What to show.
        alt: What it shows, in words.
        least: Smallest width in pixels at which it can still be read; narrower screens scroll sideways.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    style = f' style="min-width:{least}px"' if least else ""
    return f'<div style="overflow-x:auto"><img alt="{alt}" src="{source}"{style}></div>'
