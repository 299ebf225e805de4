"""`quarantine.jsonl`: the videos that could not be used, each once, with its reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from taehv import distributed
from taehv.credentials import hide_credentials, in_all_texts
from taehv.interfaces import RejectedVideo
from taehv.run.run_folder import RunFolder

log = logging.getLogger(__name__)

NAME = "quarantine.jsonl"


class Quarantine:
    """The list of a run, including videos from before a resume, on the main worker alone. The file
    is created when the first video is added."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._videos = _read_videos(run.retrieve(NAME)) if distributed.is_main() else set()

    def __len__(self) -> int:
        return len(self._videos)

    def add(self, rejected: Iterable[RejectedVideo]) -> list[RejectedVideo]:
        """Add the videos that are not listed yet, and return those."""
        entries = (cast("RejectedVideo", in_all_texts(hide_credentials, dict(e))) for e in rejected)
        new = {entry["video"]: entry for entry in entries if entry["video"] not in self._videos}
        if not new:
            return []
        self._videos.update(new)
        try:
            with (self._run.local / NAME).open("a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in new.values())
            self._run.publish(NAME)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._run.address_of(NAME), error)
        return list(new.values())


def _read_videos(path: Path) -> set[str]:
    """The videos of a list; a last line that a crash cut short is skipped."""
    videos = set()
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            videos.add(str(json.loads(line)["video"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            log.warning("%s: a line is not that of a video: %.80s", path, line)
    return videos
