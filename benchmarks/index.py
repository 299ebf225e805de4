"""What a start costs with millions of videos: reading the annotations once, and every time after.

    python benchmarks/index.py [--entries 5000000] [--indented]

Each figure is of a process of its own. The later start is with the index in the page cache, as on
a machine where another process has just mapped it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.plan import visiting_order
from data_pipeline.videos.split import open_videos

ENTRY = {
    "path": "videos/{folder:06d}/clip_{number:07d}.mp4",
    "frames": 300,
    "duration": 12.0,
    "caption": "a car drives along a road in the rain, past a house with number {number}",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=5_000_000, help="videos that are listed")
    parser.add_argument("--indented", action="store_true", help="a line per value")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(start(options.open)))
        return 0

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.json"
        write_annotations(file, options.entries, indent=2 if options.indented else None)
        print(f"{options.entries:,} videos, {file.stat().st_size / 1e6:,.0f} MB of JSON")
        first, later = start_in_process(file), start_in_process(file)

    rows = [
        ("first start", first["seconds"], 90.0, "s"),
        ("first start, peak memory", first["peak_bytes"] / 1e6, 1600.0, "MB"),
        ("later start, to the first video", later["seconds"], 2.0, "s"),
        ("later start, peak above an idle process", later["added_bytes"] / 1e6, 100.0, "MB"),
    ]
    for name, value, limit, unit in rows:
        verdict = "ok" if value < limit else "FAIL"
        print(f"{name:40s} {value:8.2f} {unit:3s}  limit {limit:6.0f}  {verdict}")
    return 0 if all(value < limit for _, value, limit, _ in rows) else 1


def write_annotations(file: Path, entries: int, indent: int | None) -> None:
    """A MiniDataset file, written entry by entry."""
    template = json.dumps(ENTRY, indent=indent).replace("{", "{{").replace("}", "}}")
    for field in ("folder:06d", "number:07d", "number"):
        template = template.replace("{{" + field + "}}", "{" + field + "}")
    separator = ", " if indent is None else ",\n"
    with file.open("w") as stream:
        stream.write(f'{{"total": {entries}, "list": [')
        for number in range(entries):
            stream.write(separator if number else "")
            stream.write(template.format(folder=number // 1000, number=number))
        stream.write("]}")


def start_in_process(file: Path) -> dict[str, float]:
    """`start` in a fresh process."""
    command = [sys.executable, __file__, "--open", str(file)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(answer.stdout)
    return figures


def start(file: str) -> dict[str, float]:
    """Seconds and bytes from a process that has imported all it needs to the first video's name."""
    idle = memory("VmRSS")
    begin = time.perf_counter()
    training, _ = open_videos(file, "", fraction=0.1, seed=0)
    training.name(visiting_order(0, 0, len(training))(0))
    seconds = time.perf_counter() - begin
    peak = memory("VmHWM")
    return {"seconds": seconds, "peak_bytes": peak, "added_bytes": peak - idle}


def memory(figure: str) -> int:
    """One of the kernel's figures of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{figure}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not tell {figure}")


if __name__ == "__main__":
    sys.exit(main())
