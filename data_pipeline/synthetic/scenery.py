"""The things that stand or drive in the synthetic scene: trees, houses, poles, posts, cars.

Each is drawn from a few flat shapes, placed in metres and projected to pixels. World axes: X to
the right, Y up from the ground, Z ahead of the camera.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.synthetic.canvas import (
    Colour,
    Picture,
    Point,
    add_glow,
    fill_ellipse,
    fill_polygon,
)

WINDOW = np.array([0.13, 0.16, 0.20], np.float32)
TYRE = np.array([0.05, 0.05, 0.06], np.float32)
BARK = np.array([0.27, 0.19, 0.13], np.float32)
STEEL = np.array([0.45, 0.46, 0.48], np.float32)
WHITE = np.array([0.88, 0.88, 0.86], np.float32)
RED = np.array([0.75, 0.08, 0.06], np.float32)
LAMP = np.array([1.0, 0.93, 0.75], np.float32)


@dataclass(frozen=True)
class Thing:
    """Something with a place in the world."""

    kind: str
    """A key of PAINTERS."""

    x: float
    """Metres to the right of the camera's lane."""

    z: float
    """Metres ahead of the camera's start, at time 0."""

    size: float
    """Height in metres of what stands; factor on the size of what drives."""

    colour: Colour
    """Its main colour in full light."""

    speed: float = 0.0
    """Metres per second along Z."""


@dataclass(frozen=True)
class Brush:
    """Draws in metres at one place of the world, in one frame's light."""

    picture: Picture
    project: Callable[[float, float, float], Point]
    """(X, Y, Z) in metres to pixels."""

    focal: float
    """Focal length in pixels."""

    light: Colour
    """Colour of the light."""

    haze: Colour
    """Colour that things fade to with distance."""

    clarity: Callable[[float], float]
    """Part of a colour that is left at a distance Z."""

    lamps: float
    """How bright lamps look against the daylight, in [0, 1]."""

    def shade(self, colour: Colour, z: float, factor: float = 1.0) -> Colour:
        """A colour as it looks at distance Z."""
        clear = np.float32(self.clarity(z))
        return colour * self.light * np.float32(factor) * clear + self.haze * (1 - clear)

    def face(
        self, points: Sequence[tuple[float, float, float]], colour: Colour, factor: float = 1.0
    ) -> None:
        """A flat convex face with corners in metres."""
        shade = self.shade(colour, min(z for _, _, z in points), factor)
        fill_polygon(self.picture, [self.project(*point) for point in points], shade)

    def board(
        self, left: float, right: float, low: float, high: float, z: float, colour: Colour
    ) -> None:
        """An upright rectangle that faces the camera."""
        self.face([(left, low, z), (right, low, z), (right, high, z), (left, high, z)], colour)

    def ball(self, centre: Point, radii: Point, z: float, colour: Colour, factor: float) -> None:
        """An ellipse that faces the camera."""
        scale = self.focal / z
        fill_ellipse(
            self.picture,
            self.project(*centre, z),
            (radii[0] * scale, radii[1] * scale),
            self.shade(colour, z, factor),
        )

    def shadow(self, x: float, z: float, half_width: float) -> None:
        """A soft dark spot on the ground."""
        scale = self.focal / z
        fill_ellipse(
            self.picture,
            self.project(x, 0.0, z),
            (half_width * scale, max(0.12 * half_width * scale, 0.6)),
            self.shade(TYRE, z),
            opacity=0.55,
        )

    def lamp(self, x: float, y: float, z: float, size: float, colour: Colour) -> None:
        """A light source, with a glow where the day is dark."""
        scale = self.focal / z
        centre = self.project(x, y, z)
        radius = max(size * scale, 0.4)
        shown = self.shade(colour, z) * (1 - self.lamps) + colour * self.lamps
        fill_ellipse(self.picture, centre, (radius, radius), shown)
        if self.lamps > 0.3:
            add_glow(self.picture, centre, 7 * radius, colour * np.float32(0.5 * self.lamps))


def _broadleaf(brush: Brush, thing: Thing, x: float, z: float) -> None:
    height = thing.size
    brush.shadow(x, z, 0.35 * height)
    brush.board(x - 0.03 * height, x + 0.03 * height, 0, 0.5 * height, z, BARK)
    for dx, y, radius, factor in (
        (0.0, 0.62, 0.30, 0.70),
        (-0.14, 0.58, 0.21, 0.80),
        (0.15, 0.66, 0.20, 0.95),
        (0.05, 0.80, 0.19, 1.12),
    ):
        radii = (radius * height, 0.85 * radius * height)
        brush.ball((x + dx * height, y * height), radii, z, thing.colour, factor)


def _conifer(brush: Brush, thing: Thing, x: float, z: float) -> None:
    height = thing.size
    brush.shadow(x, z, 0.25 * height)
    brush.board(x - 0.025 * height, x + 0.025 * height, 0, 0.25 * height, z, BARK)
    for low, high, half, factor in (
        (0.12, 0.55, 0.24, 0.7),
        (0.34, 0.78, 0.18, 0.85),
        (0.58, 1.0, 0.12, 1.0),
    ):
        left, right, top = x - half * height, x + half * height, (x, high * height, z)
        middle = (x + 0.2 * half * height, low * height, z)
        brush.face([(left, low * height, z), middle, top], thing.colour, factor)
        brush.face([middle, (right, low * height, z), top], thing.colour, 1.25 * factor)


def _house(brush: Brush, thing: Thing, x: float, z: float) -> None:
    height, half, depth = thing.size, 0.75 * thing.size, 1.6 * thing.size
    roof = np.array([0.42, 0.20, 0.15], np.float32)
    near = x - half if x > 0 else x + half
    ridge = 1.45 * height
    brush.face(
        [(near, 0, z), (near, height, z), (near, height, z + depth), (near, 0, z + depth)],
        thing.colour,
        0.65,
    )
    brush.face(
        [(near, height, z), (x, ridge, z), (x, ridge, z + depth), (near, height, z + depth)], roof
    )
    brush.board(x - half, x + half, 0, height, z, thing.colour)
    brush.face([(x - half, height, z), (x + half, height, z), (x, ridge, z)], thing.colour, 0.9)
    for across in (-0.5, 0.5):
        for low in (0.12, 0.58):
            centre = x + across * half
            width, bottom = 0.16 * height, low * height
            brush.board(centre - width, centre + width, bottom, bottom + 0.28 * height, z, WINDOW)


def _lamp_post(brush: Brush, thing: Thing, x: float, z: float) -> None:
    height, arm = thing.size, -1.6 if x > 0 else 1.6
    brush.board(x - 0.09, x + 0.09, 0, height, z, STEEL)
    brush.board(min(x, x + arm), max(x, x + arm), height - 0.15, height, z, STEEL)
    brush.lamp(x + arm, height - 0.2, z, 0.16, LAMP)


def _sign(brush: Brush, thing: Thing, x: float, z: float) -> None:
    brush.board(x - 0.05, x + 0.05, 0, thing.size, z, STEEL)
    brush.board(x - 0.55, x + 0.55, thing.size - 0.9, thing.size + 0.2, z, WHITE)
    brush.board(x - 0.45, x + 0.45, thing.size - 0.8, thing.size + 0.1, z, thing.colour)


def _post(brush: Brush, thing: Thing, x: float, z: float) -> None:
    brush.board(x - 0.07, x + 0.07, 0, thing.size, z, WHITE)
    brush.board(x - 0.07, x + 0.07, 0.65 * thing.size, 0.85 * thing.size, z, TYRE)


def _vehicle(brush: Brush, thing: Thing, x: float, z: float) -> None:
    """A car or a van: a lower body and a cabin, each with the end and the side that are seen."""
    scale = thing.size
    half, length = 0.92 * scale, 4.3 * scale
    floor, belt, top = 0.28 * scale, 0.88 * scale, 1.46 * scale
    away = thing.speed >= 0
    side = x - half if x > 0 else x + half
    inset = side + (0.12 if x > 0 else -0.12) * scale

    brush.shadow(x, z + 0.3 * length, 1.25 * half)
    for wheel in (z + 0.8 * length, z + 0.15 * length):
        for left, right in ((-half, -0.62 * half), (0.62 * half, half)):
            brush.board(x + left, x + right, 0, 0.5 * scale, wheel, TYRE)
    body_side = [(side, floor, z), (side, belt, z), (side, belt, z + length)]
    brush.face([*body_side, (side, floor, z + length)], thing.colour, 0.62)
    cabin_side = [(side, belt, z + 0.12 * length), (inset, top, z + 0.25 * length)]
    cabin_far = [(inset, top, z + 0.65 * length), (side, belt, z + 0.8 * length)]
    brush.face([*cabin_side, *cabin_far], WINDOW, 0.8)
    roof = [(x - 0.8 * half, top, z + 0.2 * length), (x + 0.8 * half, top, z + 0.2 * length)]
    roof_far = [(x + 0.8 * half, top, z + 0.7 * length), (x - 0.8 * half, top, z + 0.7 * length)]
    brush.face([*roof, *roof_far], thing.colour, 1.15)

    def cabin(z_low: float, margin: float, colour: Colour, factor: float) -> None:
        brush.face(
            [
                (x - half + margin, belt + 0.5 * margin, z_low),
                (x + half - margin, belt + 0.5 * margin, z_low),
                (x + 0.8 * half - margin, top - 0.5 * margin, z_low),
                (x - 0.8 * half + margin, top - 0.5 * margin, z_low),
            ],
            colour,
            factor,
        )

    cabin(z + 0.1 * length, 0.0, thing.colour, 1.0)
    cabin(z + 0.1 * length, 0.1 * scale, WINDOW, 1.4)
    brush.board(x - half, x + half, floor, belt, z, thing.colour)
    brush.board(x - half, x + half, floor, floor + 0.16 * scale, z, TYRE * 3)
    brush.board(x - 0.26, x + 0.26, floor + 0.2 * scale, floor + 0.33 * scale, z, WHITE)
    for lamp in (-0.78 * half, 0.78 * half):
        brush.lamp(x + lamp, 0.72 * scale, z, 0.12 * scale, RED if away else LAMP)


PAINTERS: dict[str, Callable[[Brush, Thing, float, float], None]] = {
    "broadleaf": _broadleaf,
    "conifer": _conifer,
    "house": _house,
    "lamp_post": _lamp_post,
    "sign": _sign,
    "post": _post,
    "vehicle": _vehicle,
}
"""How each kind is drawn at (X, Z) metres from the camera."""
