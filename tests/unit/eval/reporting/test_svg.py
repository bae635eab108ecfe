"""Figures in light and dark."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from eval.reporting.svg import BLUE, DARK, INK, save_svg, width_of
from rlhfv_ray.errors import DataError


def drawn(path: Path) -> str:
    figure = Figure(figsize=(4, 2))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=BLUE, label="a --c0 <b>")
    axes.legend()
    save_svg(figure, path)
    return path.read_text()


def test_a_figure_has_both_schemes_and_no_background(tmp_path: Path) -> None:
    """Catches: black text on a dark page, a white box on it, a figure that no reader parses."""
    svg = drawn(tmp_path / "a.svg")
    ElementTree.fromstring(svg)
    style, _, body = svg.partition("</style>")
    light, dark = style.split("@media (prefers-color-scheme:dark)")
    for color, other in DARK.items():
        assert color in light and other in dark and color not in body
    assert f"fill:var(--c{list(DARK).index(INK)})" in light
    assert "#ffffff" not in body


def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    """Catches: a report that changes with every run of the same command."""
    assert drawn(tmp_path / "a.svg") == drawn(tmp_path / "b.svg")


def test_the_width_is_that_of_the_figure(tmp_path: Path) -> None:
    """4 inches are 288 points, 408 pixels."""
    assert width_of(drawn(tmp_path / "a.svg")) == 408
    with pytest.raises(DataError, match="width in points"):
        width_of("<svg></svg>")
