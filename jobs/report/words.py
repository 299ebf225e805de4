"""Numbers, signs and pictures as HTML, and the page around them, which needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from taehv.credentials import hide_credentials
from taehv.evaluation.scores import METRICS

STYLE = Path(__file__).with_name("style.css")


NONE = "–"  # noqa: RUF001

SIGNS = {
    "pass": '<circle cx="12" cy="12" r="10"/><path d="M7 12.5l3.5 3.5L17 9"/>',
    "warning": '<path d="M12 3L22 21H2z"/><path d="M12 10v5"/>'
    '<circle class="solid" cx="12" cy="18" r="1.2"/>',
    "failure": '<path d="M8 2h8l6 6v8l-6 6H8l-6-6V8z"/><path d="M8 8l8 8M16 8l-8 8"/>',
}
"""A level by its outline: round, three-cornered, eight-cornered."""

SMALL_PICTURE = 320
"""Pixels: a smaller one is shown with its pixels as they are."""


def number(value: float | None, digits: int = 4) -> str:
    """A figure with so many significant digits, zeros at the end among them."""
    if value is None:
        return NONE
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")  # noqa: RUF001


def sign(level: str) -> str:
    """The outline that stands for a level."""
    return f'<svg class="sign" viewBox="0 0 24 24" aria-hidden="true">{SIGNS[level]}</svg>'


def level(name: str) -> str:
    """A level, as sign and word."""
    return f'<span class="level {name}">{sign(name)}{name}</span>'


def outcome(difference: Mapping[str, Any]) -> str:
    """What a comparison came to, with the clips that it is over where some are missing."""
    found, note = str(difference["outcome"]), difference["note"]
    if found == "not compared":
        return f"{found}: {note}"
    return found + (f" ({note})" if note else "")


def score(metric: str, found: Mapping[str, Any] | None) -> str:
    """A mean with its interval beneath."""
    if found is None or found["mean"] is None:
        return NONE
    digits = METRICS[metric].digits
    between = ""
    if found["low"] is not None:
        # Of an interval's ends one digit less is worth reading.
        ends = f"{number(found['low'], digits - 1)} … {number(found['high'], digits - 1)}"
        between = f"<small>{ends}</small>"
    return number(found["mean"], digits) + between


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], own: int = -1, words: Sequence[int] = ()
) -> str:
    """Cells are HTML. own: the row that is set apart. words: columns that are set left."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=' + chr(34) + 'words' + chr(34) if k in words else ''}>{cell}</{tag}>"
            for k, cell in enumerate(cells)
        )

    body = "".join(
        f"<tr{' class=' + chr(34) + 'own' + chr(34) if k == own else ''}>{line(row, 'td')}</tr>"
        for k, row in enumerate(rows)
    )
    return (
        f'<div class="wide"><table><thead><tr>{line(header, "th")}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(path: Path, caption: str) -> str:
    """A picture file as a figure that holds it."""
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    with Image.open(path) as image:
        width, height = image.size
    small = ' class="small"' if max(width, height) <= SMALL_PICTURE else ""
    return (
        f'<figure><img{small} width="{width}" height="{height}" alt="{escape(caption)}" '
        f'src="data:image/{kind};base64,{data}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def definitions(entries: Sequence[tuple[str, str]]) -> str:
    """A list of names and values; both are text."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(hide_credentials(value))}</dd>"
        for name, value in entries
    )
    return f"<dl>{rows}</dl>"


def document(title: str, head: str, parts: Sequence[tuple[str, str]], footer: str) -> str:
    """The page. `title` is text; head, parts (each with a heading, which is text) and footer are
    HTML."""
    body = "".join(f"<h2>{escape(heading)}</h2>{content}" for heading, content in parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{head}
{body}
<footer>{footer}</footer>
</main>
</body>
</html>
"""
