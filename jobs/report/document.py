"""The frame of a report: one page that holds all it shows, and needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")


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
