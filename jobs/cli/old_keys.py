"""Keys of configuration files that earlier versions wrote, in today's words."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

CROPS = ("min_crop_scale", "max_crop_scale")
CROPS_THEN = (0.8, 1.0)
"""What the two had where a file named only one."""


LACKING: dict[tuple[str, str], Any] = {
    ("train", "start"): "near_identity",
    ("optim", "gradient_centralization"): False,
    ("optim", "optimizer"): "adamw",
}
"""Settings that came later than the first runs, and what such a run had."""


def complete_old_run(content: dict[str, dict[str, Any]]) -> None:
    """Add to a run's own config.yaml, which names every setting there was, what came later."""
    for (section, key), value in LACKING.items():
        content.setdefault(section, {}).setdefault(key, value)


def translate_old_keys(content: dict[Any, Any], file: str) -> None:
    """Replace old keys in the content of a YAML file, with a line for what they mean today.

    `data.min_crop_scale` and `data.max_crop_scale` were the range of `data.crops`, at a time when
    every crop was most of the picture.
    """
    data = content.get("data")
    if not isinstance(data, dict) or not any(key in data for key in CROPS):
        return
    low, high = (data.pop(key, default) for key, default in zip(CROPS, CROPS_THEN, strict=True))
    if "crops" in data:
        return
    data["crops"] = f"{low}-{high}"
    log.info(
        "%s is of a version that knew whole pictures only: its crops, %s to %s of the largest that "
        "fits, are data.crops %s today; clips at the scale of the video come by data.crops mixed",
        file,
        low,
        high,
        data["crops"],
    )
