"""Latents as a picture: a column a channel, a row a moment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MOST_CHANNELS = 16
"""Of more, those with the largest spread are shown."""

MOST_MOMENTS = 4
CELL = 96
"""Smallest side of a cell, pixels."""

GAP = 6
HEADER = 44
BACKGROUND, INK = 255, "#222222"


def latent_png(latents: Tensor, path: Path) -> None:
    """[t, C, h, w] -> a PNG. Each channel is grey from its lowest value, black, to its highest."""
    spread = latents.float().std(dim=(0, 2, 3), unbiased=False)
    shown = spread.topk(min(MOST_CHANNELS, len(spread))).indices.sort().values
    moments = torch.linspace(0, len(latents) - 1, min(MOST_MOMENTS, len(latents))).round().long()
    chosen = latents.float().cpu()[moments][:, shown.cpu()]
    low = chosen.amin(dim=(0, 2, 3), keepdim=True)
    high = chosen.amax(dim=(0, 2, 3), keepdim=True)
    grey = ((chosen - low) / (high - low).clamp(min=1e-6) * 255).round().byte().numpy()

    factor = max(1, -(-CELL // min(grey.shape[2:])))
    cells = grey.repeat(factor, axis=2).repeat(factor, axis=3)
    cells = np.pad(cells, ((0, 0), (0, 0), (0, GAP), (0, GAP)), constant_values=BACKGROUND)
    rows, columns, height, width = cells.shape
    picture = cells.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
    picture = np.pad(picture, ((HEADER, 0), (GAP, 0)), constant_values=BACKGROUND)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture).convert("RGB")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    for column, channel in enumerate(shown.tolist()):
        left = GAP + column * width
        ends = f"{float(low[0, column]):.2g} … {float(high[0, column]):.2g}"
        draw.text((left, 4), f"channel {channel}", fill=INK, font=font)
        draw.text((left, 22), ends, fill=INK, font=font)
    image.save(path)
