"""Figures as words, and the Jinja templates that put them into a page which needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from taehv.credentials import hide_credentials
from taehv.evaluation.scores import METRICS

NONE = "–"  # noqa: RUF001

SMALL_PICTURE = 320
"""Pixels: a smaller one is shown with its pixels as they are."""


def number(value: float | None, digits: int = 4) -> str:
    """A figure with so many significant digits, zeros at the end among them."""
    if value is None:
        return NONE
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")  # noqa: RUF001


def outcome(difference: Mapping[str, Any]) -> str:
    """What a comparison came to, with the clips that it is over where some are missing."""
    found, note = str(difference["outcome"]), difference["note"]
    if found == "not compared":
        return f"{found}: {note}"
    return found + (f" ({note})" if note else "")


def interval(metric: str, found: Mapping[str, Any]) -> str:
    """The interval of a mean; empty where there is none."""
    if found["mean"] is None or found["low"] is None:
        return ""
    # Of an interval's ends one digit less is worth reading.
    digits = METRICS[metric].digits - 1
    return f"{number(found['low'], digits)} … {number(found['high'], digits)}"


def picture(path: Path) -> dict[str, Any]:
    """A picture file as the attributes of an <img> that holds it."""
    kind = "jpeg" if path.suffix == ".jpg" else "png"
    data = base64.b64encode(path.read_bytes()).decode()
    with Image.open(path) as image:
        width, height = image.size
    small = {"class": "small"} if max(width, height) <= SMALL_PICTURE else {}
    return small | {"width": width, "height": height, "src": f"data:image/{kind};base64,{data}"}


def render(template: str, **content: Any) -> str:
    """A page from a template beside the code, such as "sweep/report.html.j2".

    Text is escaped, and a name that the template asks for and `content` lacks is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "hide_credentials": hide_credentials}
    environment.globals["NONE"] = NONE
    return environment.get_template(template).render(content)
