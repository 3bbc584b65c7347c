"""The look of all figures, and how they are written: for print as they are, for a page inline.

Figures are vectors with a transparent ground, and words are text. On a page their ink takes the
colour of the text around them, so that they can be read by day and by night.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from agentprm.files import write_atomic

INK = "#1d2630"
"""Text and axes; no other part of a figure has this colour."""
GRID = "#8a94a0"
SERIES = ("#2f7fc1", "#c8741f", "#2a9270", "#8f63b8", "#cc4b5c", "#7b8794")
"""Colours of series, told from one another, and from black and white, also by the colour-blind."""
MARKERS = "osD^vP"

_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
"""Equal rows make equal files."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "agentprm",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def plot(draw: Callable[[Figure], None]) -> Figure:
    """A figure as `draw` fills it."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, 3.1), layout="constrained")
        draw(figure)
    return figure


def percent(axes: Axes, axis: Literal["x", "y"] = "y") -> None:
    """The axis shows success, a rate."""
    axes.set(**{f"{axis}lim": (-0.02, 1.02), f"{axis}label": "success"})
    getattr(axes, f"{axis}axis").set_major_formatter(PercentFormatter(1, decimals=0))


def whole_numbers(axes: Axes) -> None:
    """The x axis counts."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def spread(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Error bars of `success` from `low` to `high`, as matplotlib takes them."""
    return [
        [row["success"] - row["low"] for row in rows],
        [row["high"] - row["success"] for row in rows],
    ]


def legend_below(figure: Figure, axes: Axes) -> None:
    """What the series of `axes` are, under the figure: there it never covers one.

    In up to three columns, as many as the figure is wide enough for.
    """
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(min(len(labels), 3), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def write(figure: Figure, directory: Path) -> None:
    """Write `figure.png`, on white, and `figure.svg`."""
    ways: dict[str, dict[str, Any]] = {
        "png": {"dpi": 200, "facecolor": "white"},
        "svg": {"transparent": True, "metadata": _NO_METADATA},
    }
    for format_, options in ways.items():
        with io.BytesIO() as file, mpl.rc_context(_STYLE):
            figure.savefig(file, format=format_, **options)
            write_atomic(directory / f"figure.{format_}", file.getvalue())


def inline(figure: Figure, description: str) -> str:
    """The SVG element of a figure. `description` is what is read out to those who do not see it."""
    with io.StringIO() as file, mpl.rc_context({**_STYLE, "svg.hashsalt": description}):
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
        return for_page(file.getvalue(), description)


def for_page(svg: str, description: str) -> str:
    """What matplotlib wrote as an SVG file, as an element of a page."""
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body).replace(INK, "currentColor")
    label = escape(description)
    return f'<svg {view[0] if view else ""} role="img" aria-label="{label}">{body}'
