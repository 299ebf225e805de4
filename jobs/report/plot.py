"""Plots as SVG that stands in a page: text is text, and the colours are the page's own."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

INK, SOFT, RULE = "#1d1f22", "#5c6168", "#dcd9d0"
ACCENT, TINT, CARD, PAPER = "#14508c", "#eef3f8", "#ffffff", "#fbfaf6"

VARIABLES = {
    **{INK: "ink", SOFT: "soft", RULE: "rule"},
    **{ACCENT: "accent", TINT: "tint", CARD: "card", PAPER: "paper"},
}
"""In the page each of these colours is a variable of style.css, which dark paper changes."""

STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": RULE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": SOFT,
}

MARKS = "oDs^X"
"""Series are told apart by shape, never by colour alone."""

DASHES: tuple[Any, ...] = ("-", (0, (4, 2.5)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (1, 3)))
"""And lines by their dashes."""


def plot(
    draw: Callable[[Axes], None], description: str, width: float = 760, height: float = 320
) -> Markup:
    """What `draw` draws, as an <svg> of this shape, in units of which a letter is about seven wide.

    The same drawing gives the same text. `description` is read out in place of the picture.
    """
    # matplotlib takes two seconds to import, which only a job that writes a report should pay.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE | {"svg.hashsalt": description}):
        figure = Figure((width / 72, height / 72), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        file = io.BytesIO()
        figure.savefig(file, format="svg")
    return _embedded(ElementTree.fromstring(file.getvalue()), description)


def line_style(series: int) -> dict[str, Any]:
    """Of a line of this series; the first is strong and lies on top."""
    return {
        "color": SOFT if series else ACCENT,
        "linewidth": 1.6 if series else 2.4,
        "linestyle": DASHES[series % len(DASHES)],
        "zorder": 3 - 0.1 * series,
    }


def mark_style(series: int) -> dict[str, Any]:
    """Of a line's marks; the first series' are filled."""
    return {
        "marker": MARKS[series % len(MARKS)],
        "markersize": 7.5,
        "markerfacecolor": CARD if series else ACCENT,
        "markeredgecolor": SOFT if series else CARD,
        "markeredgewidth": 1.2,
    }


def marks(axes: Axes, points: Iterable[tuple[float, float, str]], series: int) -> None:
    """Points of a series: x, y, and words that show under a mouse."""
    style = mark_style(series) | {"linestyle": "", "zorder": 4 - 0.1 * series}
    if columns := [*zip(*points, strict=True)]:
        xs, ys, tips = columns
        (line,) = axes.plot(xs, ys, **style)
        show_tips(line, tips)


def show_tips(artist: Artist, tips: Sequence[str]) -> None:
    """Give each shape that the artist draws, in their order, words that show under a mouse."""
    # matplotlib writes this name into the file, where `_embedded` finds it.
    artist.set_gid(json.dumps([*tips]))


def legend(axes: Axes, labels: Sequence[str], lines: bool) -> None:
    """Above the plot, which series is which."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = axes.figure
    assert isinstance(figure, Figure)
    handles = []
    for series, label in enumerate(labels):
        style = line_style(series) | ({} if lines else {"linestyle": ""})
        handles.append(Line2D([], [], label=label, **style, **mark_style(series)))
    widest = 7 * max(len(label) for label in labels) + 60
    columns = max(1, min(len(labels), int(72 * figure.get_figwidth() / widest)))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, handlelength=3)


def _embedded(svg: ElementTree.Element, description: str) -> Markup:
    """matplotlib's file as a part of a page: without names that another plot may have as well, and
    without references, of which a page that holds all it shows has none."""
    shapes = {shape.get("id"): shape.attrib["d"] for shape in svg.iter(_SVG + "path")}
    for parent in [*svg.iter()]:
        for child in [*parent]:
            if child.tag in (_SVG + "metadata", _SVG + "defs"):
                parent.remove(child)
            elif child.tag == _SVG + "use":
                child.tag = _SVG + "path"
                child.set("d", shapes[child.attrib.pop(_HREF)[1:]])
                place = child.attrib.pop("x"), child.attrib.pop("y")
                child.set("transform", "translate({} {})".format(*place))
    for group in svg.iter(_SVG + "g"):
        if (name := group.get("id", "")).startswith("["):
            for shape, tip in zip(group.iter(_SVG + "path"), json.loads(name), strict=True):
                ElementTree.SubElement(shape, _SVG + "title").text = tip
    for element in svg.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = (element.text or "").strip(), ""
        kept = {k: v for k, v in element.attrib.items() if k not in ("id", "clip-path")}
        element.attrib.clear()
        for name, value in kept.items():
            # More digits than two are finer than any pixel.
            shown = _COLOUR.sub(_variable, value) if name == "style" else _DIGITS.sub("", value)
            element.set(name, shown)
    attributes = {"class": "plot", "viewBox": svg.attrib["viewBox"], "role": "img"}
    svg.attrib.clear()
    svg.attrib.update(attributes | {"aria-label": description})
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


_SVG, _HREF = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
_COLOUR, _DIGITS = re.compile("#[0-9a-f]{6}"), re.compile(r"(?<=\.\d\d)\d+")


def _variable(colour: re.Match[str]) -> str:
    return f"var(--{VARIABLES[colour[0]]})"
