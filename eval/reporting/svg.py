"""Figures as SVG files that follow the light or dark colour scheme of the reader.

Every colour of a figure that has a counterpart in the dark is written as a CSS variable; a style
sheet in the file itself gives both its values. So a figure looks right on the page, which embeds
it as an image, and alone in a browser or in MLflow.
"""

import io
import re
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from rlhfv_ray.errors import DataError

GREY, BLUE, VERMILION, GREEN = "#9aa3ad", "#0072b2", "#d55e00", "#009e73"
INK = "#000000"  # text, axes and intervals, as matplotlib draws them
# Dark by light colour. Others, of mid lightness, are seen on both.
DARK = {
    INK: "#e6e9ec",
    BLUE: "#3f9fdc",
    VERMILION: "#ff8c42",
    GREEN: "#2fd0a5",
    "#222222": "#f4f5f6",
    "#fdf3ec": "#2d241e",  # backgrounds of panels
    "#edf6f1": "#1c2b25",
    "#f4f5f6": "#262b31",
}
UNITS_PER_POINT = 102 / 72  # CSS pixels; makes a figure's letters about as large as the page's


def save_svg(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG without a background, the same bytes for the same figure."""
    drawn = io.StringIO()
    with rc_context({"svg.hashsalt": "rlhfv-ray"}):
        figure.savefig(drawn, format="svg", facecolor="none", metadata={"Date": None})
    text = drawn.getvalue().replace("fill: #ffffff", "fill: none")  # matplotlib's backgrounds
    names = {color: f"--c{number}" for number, color in enumerate(DARK)}
    for color, name in names.items():
        text = text.replace(color, f"var({name})")
    light = "".join(f"{name}:{color};" for color, name in names.items())
    dark = "".join(f"{names[color]}:{value};" for color, value in DARK.items())
    style = (
        f"<style>svg{{{light}fill:var({names[INK]})}}"  # what has no fill of its own is black
        f"@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    start = text.index(">", text.index("<svg")) + 1
    path.write_text(f"{text[:start]}{style}{text[start:]}", encoding="utf-8")


def width_of(svg: str) -> int:
    """Return the width of a figure on the page, in CSS pixels.

    Raises:
        DataError: the text is no SVG of `save_svg`.
    """
    stated = re.search(r'<svg\b[^>]*\bwidth="([\d.]+)pt"', svg)
    if stated is None:
        raise DataError("a figure of a report must be an SVG with a width in points")
    return round(float(stated[1]) * UNITS_PER_POINT)
