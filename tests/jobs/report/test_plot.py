"""Plots that stand in a page: what the SVG holds, read as XML."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from jobs.report.plot import ACCENT, VARIABLES, legend, line_style, marks, plot
from jobs.report.words import render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIPS = ["a.mp4: 20 dB", 'b <b>"c" & d']


def drawn(label: str = "$5 < 6$", tips: Sequence[str] = TIPS) -> str:
    def draw(axes: "Axes") -> None:
        axes.plot([1, 2], [3, 4], **line_style(1))
        marks(axes, zip([1, 2], [3, 4], tips, strict=True), 0)
        axes.set(xlabel=label)
        legend(axes, ["network"], lines=True)

    return plot(draw, 'PSNR "here"')


def test_text_is_text_and_marks_have_their_titles() -> None:
    svg = ElementTree.fromstring(drawn())
    assert (svg.tag, svg.get("class"), svg.get("aria-label")) == ("svg", "plot", 'PSNR "here"')
    words = [element.text for element in svg.iter("text")]
    assert {"$5 < 6$", "network"} <= set(words)
    assert [element.text for element in svg.iter("title")] == TIPS
    titled = [path for path in svg.iter("path") if path.find("title") is not None]
    assert all("var(--accent)" in path.get("style", "") for path in titled)


def test_the_same_drawing_gives_the_same_text() -> None:
    assert drawn() == drawn()
    assert drawn() != drawn("another label")


def test_a_plot_stands_alone_and_beside_others() -> None:
    """Names and style sheets would be the whole page's; an address would be fetched."""
    svg = ElementTree.fromstring(drawn())
    assert not [name for element in svg.iter() for name in element.attrib if "href" in name]
    assert all("id" not in element.attrib for element in svg.iter())
    assert not {"style", "defs", "use", "metadata"} & {element.tag for element in svg.iter()}
    assert "http" not in drawn()
    assert "url(" not in drawn()


def test_every_colour_is_the_pages() -> None:
    text = drawn()
    assert ACCENT not in text
    assert "#" not in text
    style = render("report/style.css")
    assert all(f"--{name}:" in style for name in VARIABLES.values())
