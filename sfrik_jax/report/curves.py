"""Curves as inline SVG that takes its colours and its type from the page."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from sfrik_jax.report.run import Curve

MAX_POINTS = 1000
# Matplotlib needs real colours; each of these becomes a CSS variable of the page.
COLOURS = {
    "#010001": "var(--muted)",
    "#010002": "var(--rule)",
    "#010003": "var(--accent)",
    "#010004": "var(--second)",
    "#010005": "var(--ink)",
    # Of the page of many runs, one for each group.
    **{f"#02000{i}": f"var(--series-{i})" for i in range(1, 7)},
}
MUTED, RULE, ACCENT, SECOND, INK, *SERIES = COLOURS
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text: it follows the page's font and colour
    "svg.hashsalt": "sfrik",  # the same run gives the same page
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "axes.formatter.limits": (-3, 5),
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
}


@dataclass(frozen=True)
class Line:
    """One line of a figure; with `level`, a dashed horizontal one at its only value."""

    curve: Curve
    colour: str = ACCENT
    level: bool = False


def draw(
    lines: Sequence[Line],
    *,
    ident: str,
    label: str,
    inches: tuple[float, float] = (4.0, 2.1),
    unit: str = "",
    log: bool = True,
) -> str:
    """An SVG element of the lines over the step, without script or external reference.

    Args: ident: prefix of the element's ids, unique on the page; label: what it shows,
      for readers who do not see it; unit: after each y tick;
      log: a logarithmic axis where positive values span more than a factor 300.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for line in lines:
            _add(axes, line)
        _set_axes(axes, lines, unit, log)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), ident=ident, label=label)


def thin(curve: Curve, limit: int = MAX_POINTS) -> Curve:
    """At most `limit` points of the curve, evenly spaced, with both ends."""
    if len(curve) <= limit:
        return curve
    last = len(curve) - 1
    return [curve[round(i * last / (limit - 1))] for i in range(limit)]


def _add(axes, line: Line) -> None:
    if line.level:
        axes.axhline(line.curve[-1][1], color=line.colour, lw=1.1, ls=(0, (4, 3)))
        return
    steps, values = zip(*thin(line.curve), strict=True)
    few = len(steps) <= 20
    axes.plot(
        steps,
        values,
        color=line.colour,
        lw=1.6,
        marker="o" if few else None,
        ms=4,
        solid_joinstyle="round",
        clip_on=False,
    )


def _set_axes(axes, lines: Sequence[Line], unit: str, log: bool) -> None:
    values = [value for line in lines for _, value in line.curve]
    if log and min(values) > 0 and max(values) / min(values) > 300:
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        formatter = ScalarFormatter(useOffset=False)
        axes.yaxis.set_major_formatter(formatter)
        if unit:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}{unit}")
        if math.isclose(min(values), max(values)):
            room = abs(values[0]) / 2 or 1.0
            axes.set_ylim(values[0] - room, values[0] + room)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.margins(x=0.02, y=0.08)
    axes.yaxis.get_offset_text().set_color(MUTED)


def inline(svg: str, *, ident: str, label: str) -> str:
    """The <svg> element alone: own ids, the page's font and colours, scalable."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Its style sheet would apply to the whole page.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{ident}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{ident}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{ident}-\1)", svg)
    svg = re.sub(r"font-family: [^;\"]+;?|font: ([\d.]+px) [^;\"]+", _font_size, svg)
    for placeholder, variable in COLOURS.items():
        svg = svg.replace(placeholder, variable)
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box is not None  # Matplotlib always writes one
    body = svg[svg.index(">") + 1 :]
    return f'<svg {view_box[0]} role="img" aria-label="{escape(label)}">{body}'.strip()


def _font_size(match: re.Match) -> str:
    return f"font-size: {match[1]}" if match[1] else ""
