"""The documents' links lead somewhere."""

import re
from pathlib import Path

import pytest

from tests.helpers.jobs_run import REPOSITORY

DOCUMENTS = sorted(
    file.relative_to(REPOSITORY)
    for folder in (".", "docs", "benchmarks")
    for file in (REPOSITORY / folder).glob("*.md")
)


def _anchors(document: Path) -> set[str]:
    """Those of its headings, as GitHub makes them."""
    headings = [line for line in document.read_text().splitlines() if line.startswith("#")]
    words = [re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower()) for line in headings]
    return {heading.replace(" ", "-") for heading in words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    file = REPOSITORY / document
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.exists(), f"{document}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{document}: {link}"


def test_both_readmes_show_the_same_commands() -> None:
    """A command or an output that is changed in one is changed in the other."""

    def shown(name: str) -> list[str]:
        text = re.sub("```.*?```", "", (REPOSITORY / name).read_text(), flags=re.DOTALL)
        lines = re.findall(r"^    (.*)$", text, re.MULTILINE)
        return [line for line in lines if not line.startswith("# ")]

    assert shown("README.md") == shown("README.zh-CN.md")
