"""The report in a real browser: it is whole, silent, and leads with what is worst."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.evaluate_run import export_small, make_videos, read_metrics, run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")

PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images];
  document.body.dataset.images = images.length;
  document.body.dataset.broken = images.filter(i => !(i.complete && i.naturalWidth)).length;
  document.body.dataset.overflow = document.documentElement.scrollWidth -
    document.documentElement.clientWidth;
  document.body.dataset.fetched = performance.getEntriesByType("resource")
    .filter(entry => !entry.name.startsWith("data:")).length;
});</script>"""
"""Writes what the browser found into the page, for `--dump-dom` to print."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    weights, videos = export_small(folder / "weights"), make_videos(folder / "videos", 7)
    assert run(weights, videos, folder / "out") == 0
    return folder / "out"


def open_page(page: Path, width: int) -> tuple[str, list[str]]:
    """The page as the browser has it, and what it wrote to its console."""
    if BROWSER is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    words = (
        f"--headless=new --no-sandbox --disable-gpu --enable-logging=stderr --dump-dom"
        f" --virtual-time-budget=5000 --window-size={width},1000"
        f" --user-data-dir={page.parent / 'profile'} {page.as_uri()}"
    )
    done = subprocess.run(
        [BROWSER, *words.split()], capture_output=True, text=True, timeout=90, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [1200, 500])
# Three clips of four pictures each, and the latents; seven artifacts of three pictures each.
@pytest.mark.parametrize(("name", "images"), [("summary_report", "13"), ("artifacts", "21")])
def test_a_browser_shows_all_of_it(
    output: Path, tmp_path: Path, name: str, images: str, width: int
) -> None:
    page = tmp_path / "page.html"
    text = (output / f"{name}.html").read_text()
    page.write_text(text.replace("</head>", PROBE + "</head>"))
    shown, console = open_page(page, width)
    assert console == []
    found = dict(re.findall(r'data-(images|broken|overflow|fetched)="(-?\d+)"', shown))
    assert found == {"images": images, "broken": "0", "overflow": "0", "fetched": "0"}


def test_a_console_error_would_be_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><script>console.error('here')</script>")
    assert any("here" in line for line in open_page(page, 800)[1])


def test_the_worst_clip_is_on_top(output: Path) -> None:
    text = (output / "summary_report.html").read_text()
    results = read_metrics(output)
    psnr = sorted(c["scores"]["network"]["psnr"] for v in results["videos"] for c in v["clips"])
    shown = [float(value) for value in re.findall(r'data-psnr="([^"]+)"', text)]
    assert shown == psnr[:3]


@pytest.mark.parametrize("name", ["summary_report", "artifacts"])
def test_the_page_needs_nothing_from_outside(output: Path, name: str) -> None:
    text = (output / f"{name}.html").read_text()
    assert "http:" not in text
    assert "https:" not in text
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="([^"]*)', text))
    if name == "artifacts":
        return
    for finding in read_metrics(output)["verdict"]["findings"]:
        assert finding["threshold"] in text
