"""Antialiased shapes on a float picture: the brush of the synthetic driving scene.

A picture is float32 [H, W, C], RGB in [0, 1], with pixel centres at half-integers. Points are
(x, y) in pixels. What lies outside of the picture is not drawn.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]
Point = tuple[float, float]
Colour = NDArray[np.float32]

MARGIN = 1
"""Pixels around a shape that its soft edge may touch."""


def fill_polygon(
    picture: Picture, corners: Sequence[Point], colour: Colour, opacity: float = 1.0
) -> None:
    """Fill a convex polygon, its corners in either sense of rotation."""
    points = np.asarray(corners, np.float32)
    window = _window(picture, points.min(axis=0), points.max(axis=0))
    if window is None:
        return
    rows, columns = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5
    x = np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5

    following = np.concatenate((points[1:], points[:1]))
    dx, dy = (following - points).T
    # The sense of rotation tells which side of an edge is inside.
    inside = np.copysign(1, dx[0] * dy[1] - dy[0] * dx[1])
    scale = inside / np.maximum(np.hypot(dx, dy), 1e-6)
    across, down = (-dy * scale)[:, None, None], (dx * scale)[:, None, None]
    offset = 0.5 - points[:, 0, None, None] * across - points[:, 1, None, None] * down
    coverage = np.minimum(np.maximum(across * x + down * y + offset, 0), 1).prod(axis=0)
    if opacity < 1:
        coverage *= np.float32(opacity)
    _blend(picture[window], colour, coverage)


def fill_ellipse(
    picture: Picture, centre: Point, radii: Point, colour: Colour, opacity: float = 1.0
) -> None:
    """Fill an ellipse with upright axes; `radii` are (horizontal, vertical)."""
    middle, radius = np.asarray(centre, np.float32), np.asarray(radii, np.float32)
    window = _window(picture, middle - radius, middle + radius)
    if window is None:
        return
    rows, columns = window
    y = (np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5 - middle[1]) / radius[1]
    x = (np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - middle[0]) / radius[0]
    distance = (1 - np.sqrt(x * x + y * y)) * radius.min()
    _blend(picture[window], colour, opacity * np.clip(distance + 0.5, 0, 1))


def add_glow(picture: Picture, centre: Point, radius: float, colour: Colour) -> None:
    """Add light that fades out smoothly over `radius` pixels."""
    middle = np.asarray(centre, np.float32)
    window = _window(picture, middle - radius, middle + radius)
    if window is None:
        return
    rows, columns = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5 - middle[1]
    x = np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - middle[0]
    strength = np.clip(1 - (x * x + y * y) / radius**2, 0, 1) ** 3
    picture[window] += strength[:, :, None] * colour


def _window(
    picture: Picture, low: NDArray[np.float32], high: NDArray[np.float32]
) -> tuple[slice, slice] | None:
    """Rows and columns of the picture that a shape can touch."""
    height, width = picture.shape[:2]
    left, top = np.floor(low).astype(int) - MARGIN
    right, bottom = np.ceil(high).astype(int) + MARGIN
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return None
    return slice(top, bottom), slice(left, right)


def _blend(part: Picture, colour: Colour, coverage: NDArray[np.float32]) -> None:
    part += coverage[:, :, None] * (colour - part)
