"""Charts of several groups as inline SVG, in the colours of the page's series."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from sfrik_jax.report import curves, page

GROUPS = len(curves.SERIES)  # more lines of different colours are not told apart
SOLID = GROUPS // 2  # groups beyond are dashed too, for those who see no colours
MAX_POINTS = 160
DASHES = (0, (4, 2))

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line of the group number `group`; groups share a colour on the whole page."""

    points: Points
    group: int


def panel(
    title: str,
    lines: Sequence[Line],
    *,
    ident: str,
    label: str,
    value: str = "",
    x_scale: str = "linear",
    y_scale: str = "linear",
    thin: bool = False,
    x_ticks: Sequence[float] = (),
) -> str:
    """A captioned chart.

    Args: ident: prefix of ids, unique on the page; label: what it shows, in words;
      value: small print beside the title; thin: for lines of single seeds; x_ticks: the
      only places of ticks on the x axis.
    """
    with mpl.rc_context(curves.STYLE):
        figure = Figure(figsize=(4.0, 2.5), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for line in lines:
            _add(axes, line, thin)
        _set_x(axes, x_scale, x_ticks)
        if y_scale == "log":
            axes.set_yscale("log")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        axes.margins(x=0.02, y=0.08)
        axes.yaxis.get_offset_text().set_color(curves.MUTED)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = curves.inline(buffer.getvalue(), ident=ident, label=label)
    return page.panel(title, value, html=svg)


def legend(names: Iterable[str]) -> str:
    """The colours of the groups by number."""
    keys = (
        page.key(name, colour=f"series-{i + 1}", dashed=i >= SOLID)
        for i, name in enumerate(names)
    )
    return f'<ul class="legend groups">{"".join(keys)}</ul>'


def few(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` of the points, evenly spaced, with both ends."""
    if len(points) <= limit:
        return points
    last = len(points) - 1
    return [points[round(i * last / (limit - 1))] for i in range(limit)]


def _add(axes: Any, line: Line, thin: bool) -> None:
    x, y = zip(*few(line.points), strict=True)
    axes.plot(
        x,
        y,
        color=curves.SERIES[line.group],
        lw=1.0 if thin else 1.6,
        alpha=0.8 if thin else 1.0,
        ls="-" if line.group < SOLID else DASHES,
        marker="o" if len(x) <= 12 else None,
        ms=2.5 if thin else 4,
        solid_joinstyle="round",
        clip_on=False,
    )


def _set_x(axes: Any, scale: str, ticks: Sequence[float]) -> None:
    if scale == "log":
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if ticks:
        axes.set_xticks(ticks)
        axes.xaxis.set_minor_locator(NullLocator())
    if ticks or scale == "linear":
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, place: int | None = None) -> str:
    return (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}").replace(
        "-", "\u2212"
    )
