"""A drive along a road, seen through a windscreen: each frame a function of the seed and the time.

The camera looks along Z from 1.3 m above the ground. Every pixel below the horizon is traced to
the ground, where road, marks and grass are painted in metres, so that they move as they would;
what stands or drives is drawn over it from far to near.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.synthetic.canvas import Colour, Picture, add_glow, fill_ellipse, fill_polygon
from data_pipeline.synthetic.roadside import LANE, VIEW, Road, pick, place_things
from data_pipeline.synthetic.scenery import PAINTERS, TYRE, Brush

CAMERA_HEIGHT = 1.3
MARK, DASH, DASH_PERIOD = 0.15, 3.0, 9.0
"""Width of the road's marks; length and distance of dashes; metres."""

TILE = 256
"""Side of the periodic noise texture."""

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Daylight:
    """Colours of a time of day."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    light: tuple[float, float, float]
    lamps: float
    sun: float


DAYLIGHTS = (
    Daylight((0.20, 0.42, 0.78), (0.74, 0.84, 0.93), (1.00, 0.98, 0.94), 0.05, 0.9),
    Daylight((0.52, 0.56, 0.61), (0.80, 0.81, 0.82), (0.82, 0.84, 0.87), 0.25, 0.0),
    Daylight((0.24, 0.28, 0.52), (0.98, 0.66, 0.40), (0.95, 0.72, 0.55), 0.55, 1.0),
    Daylight((0.45, 0.52, 0.70), (0.95, 0.86, 0.78), (0.92, 0.86, 0.82), 0.35, 0.8),
    Daylight((0.05, 0.08, 0.19), (0.30, 0.30, 0.40), (0.42, 0.44, 0.54), 1.00, 0.0),
)
"""Noon, overcast, evening, morning, dusk."""

GRASS = ((0.30, 0.42, 0.14), (0.44, 0.45, 0.20), (0.22, 0.36, 0.13), (0.56, 0.49, 0.28))


class Scene:
    """One drive. `frame(t)` renders any moment of it."""

    def __init__(
        self, seed: int | tuple[int, ...], height: int, width: int, seconds: float
    ) -> None:
        rng = np.random.default_rng(seed)
        self._height, self._width = height, width
        self._focal = 0.9 * width
        day = DAYLIGHTS[int(rng.choice(len(DAYLIGHTS), p=(0.34, 0.2, 0.16, 0.18, 0.12)))]
        self._day = day
        self._light: Colour = np.array(day.light, np.float32) * np.float32(rng.uniform(0.9, 1.05))
        self._haze: Colour = np.array(day.horizon, np.float32)
        self._visibility = rng.uniform(70, 190)
        self._road = Road.draw(rng)
        self._bend = rng.uniform(-1, 1) * 1.5e-3
        self._horizon = height * rng.uniform(0.40, 0.48)
        # Plain floats: a float64 of numpy's would make whole pictures float64.
        self._phases: list[float] = rng.uniform(0, 2 * np.pi, 16).tolist()
        self._grass = pick(rng, GRASS)
        self._asphalt: Colour = np.float32(rng.uniform(0.26, 0.42)) * np.ones(3, np.float32)
        self._hills: Colour = self._grass * np.float32(rng.uniform(0.5, 0.9))
        self._sun_x = rng.uniform(0.1, 0.9) * width
        self._noise = _tileable_noise(rng)
        self._things = place_things(rng, self._road, self._grass, seconds)

    def frame(self, time: float) -> NDArray[np.uint8]:
        """The picture at `time` seconds: uint8 [H, W, C]."""
        horizon = self._horizon + self._sway(0, time, 0.006 * self._height)
        yaw = self._sway(3, time, 0.02 * self._width)
        shift = self._sway(6, time, 0.15)
        travelled = self._road.speed * time

        picture = self._sky(horizon, yaw, time)
        self._paint_ground(picture, horizon, yaw, shift, travelled)
        self._draw_things(picture, horizon, yaw, shift, time)
        self._draw_bonnet(picture)
        return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)

    def _sway(self, index: int, time: float, amplitude: float) -> float:
        """A slow wandering around 0: three sines of unrelated periods."""
        waves = sum(
            math.sin(2 * math.pi * rate * time + self._phases[index + number])
            for number, rate in enumerate((0.31, 0.83, 1.9))
        )
        return amplitude * waves / 3

    def _curve(self, z: Values | float, travelled: float) -> Values | float:
        """Metres by which the road has turned aside at distance z."""
        bend = self._bend * math.sin(travelled / 90 + self._phases[9])
        aside: Values | float = bend * z * z
        return aside

    def _sky(self, horizon: float, yaw: float, time: float) -> Picture:
        """Gradient, sun, clouds and two ranges of hills; the lower part is painted over later."""
        y = np.arange(self._height, dtype=np.float32)[:, None] + 0.5
        x = np.arange(self._width, dtype=np.float32)[None, :] + 0.5
        above = np.clip((horizon - y) / (0.9 * self._horizon), 0, 1)
        blend = (above**0.7)[:, :, None]
        zenith = np.array(self._day.zenith, np.float32)
        picture: Picture = blend * zenith + (1 - blend) * self._haze + np.zeros_like(x)[:, :, None]

        # Clouds lie on a plane overhead, so they shrink towards the horizon.
        depth = 1 / np.maximum(horizon - y + 0.02 * self._height, 1)
        east = (x - self._width / 2 - yaw) * depth * 5 + 9 * self._phases[10] + 0.4 * time
        density = self._texture(east, depth * 420 + 9 * self._phases[11])
        cloud = np.clip(2.2 * density - 0.85, 0, 0.9) * np.clip((horizon - y) / 30, 0, 1)
        picture += cloud[:, :, None] * (self._light * 0.96 + 0.02 - picture)

        if self._day.sun > 0:
            glow = np.array((1.0, 0.85, 0.6), np.float32) * np.float32(self._day.sun)
            sun = (self._sun_x + yaw, 0.45 * horizon)
            add_glow(picture, sun, 0.55 * self._width, glow * np.float32(0.35))
            fill_ellipse(picture, sun, (0.02 * self._width,) * 2, self._light * 1.2)

        for layer, (rise, clear) in enumerate(((0.16, 0.35), (0.08, 0.65))):
            angle = (x[0] - yaw) / self._width * (6 + 5 * layer)
            ridge = sum(
                np.sin(angle * factor + self._phases[12 + layer] * factor) / factor
                for factor in (1.0, 2.3, 5.1, 11.7)
            )
            top = horizon - rise * self._height * (0.45 + 0.35 * ridge)
            covered = np.clip(y - top + 0.5, 0, 1)[:, :, None]
            colour = self._hills * self._light * clear + self._haze * (1 - clear)
            picture += covered * (colour - picture)
        return picture

    def _paint_ground(
        self, picture: Picture, horizon: float, yaw: float, shift: float, travelled: float
    ) -> None:
        """Trace every pixel below the horizon to the ground and paint what is there."""
        first = int(np.ceil(horizon + 0.5))
        y = np.arange(first, self._height, dtype=np.float32)[:, None] + 0.5
        x = np.arange(self._width, dtype=np.float32)[None, :] + 0.5
        z = self._focal * CAMERA_HEIGHT / (y - horizon)
        across = z / self._focal
        along = z * across / CAMERA_HEIGHT
        right = (x - self._width / 2 - yaw) * across + shift - self._curve(z, travelled)
        ahead = z + travelled

        patches = self._texture(right * 1.2, ahead * 1.2)
        blades = self._texture(right * 9, ahead * 9) - 0.5
        near = np.clip(1.5 - along / 0.5, 0, 1)
        brightness = 0.55 + 0.9 * patches + 0.9 * near * blades
        ground = self._grass * brightness[:, :, None]

        left_edge, right_edge = self._road.edges
        gravel = _band(right, left_edge - 0.9, right_edge + 0.9, across)
        stones = 0.85 + 0.5 * patches + 0.8 * near * blades
        _lay(ground, np.array((0.50, 0.45, 0.38), np.float32) * stones[:, :, None], gravel)

        lane_place = np.cos(2 * np.pi * right / (LANE / 2))
        worn = 1 - 0.05 * lane_place + 0.25 * (patches - 0.5) + 0.35 * near * blades
        road = _band(right, left_edge, right_edge, across)
        _lay(ground, self._asphalt * worn[:, :, None], road)

        paint = 0.82 * (0.92 + 0.3 * near * blades)[:, :, None] * np.ones(3, np.float32)
        dashes = _dash_coverage(ahead, along)
        for place, dashed in self._road.marks:
            covered = _band(right, place - MARK / 2, place + MARK / 2, across)
            _lay(ground, paint, covered * dashes if dashed else covered)

        clear = np.exp(-z / self._visibility)[:, :, None]
        picture[first:] = ground * self._light * clear + self._haze * (1 - clear)

    def _texture(self, u: Values, v: Values) -> Values:
        """Periodic noise in [0, 1], interpolated between its points."""
        u, v = np.broadcast_arrays(u, v)
        column, row = np.floor(u), np.floor(v)
        fu, fv = u - column, v - row
        i, j = row.astype(np.int64) % TILE, column.astype(np.int64) % TILE
        i_next, j_next = (i + 1) % TILE, (j + 1) % TILE
        noise = self._noise
        upper = noise[i, j] * (1 - fu) + noise[i, j_next] * fu
        lower = noise[i_next, j] * (1 - fu) + noise[i_next, j_next] * fu
        return (upper * (1 - fv) + lower * fv).astype(np.float32)

    def _draw_things(
        self, picture: Picture, horizon: float, yaw: float, shift: float, time: float
    ) -> None:
        travelled = self._road.speed * time

        def project(x: float, y: float, z: float) -> tuple[float, float]:
            across = x - shift + float(self._curve(z, travelled))
            scale = self._focal / z
            return (
                self._width / 2 + yaw + across * scale,
                horizon + (CAMERA_HEIGHT - y) * scale,
            )

        brush = Brush(
            picture,
            project,
            self._focal,
            self._light,
            self._haze,
            lambda z: math.exp(-z / self._visibility),
            self._day.lamps,
        )
        placed = [(thing.z + thing.speed * time - travelled, thing) for thing in self._things]
        visible = [(z, thing) for z, thing in placed if 2.2 < z < VIEW]
        for z, thing in sorted(visible, key=lambda pair: -pair[0]):
            PAINTERS[thing.kind](brush, thing, thing.x, z)

    def _draw_bonnet(self, picture: Picture) -> None:
        """The front of the camera's own car."""
        height, width = self._height, self._width
        colour = TYRE + self._haze * np.float32(0.12)
        centre = (width / 2, 1.28 * height)
        fill_ellipse(picture, centre, (0.62 * width, 0.36 * height), colour)
        places = ((0.2, 1.0), (0.8, 1.0), (0.68, 0.965), (0.32, 0.965))
        shine = [(x * width, y * height) for x, y in places]
        fill_polygon(picture, shine, colour + self._haze * np.float32(0.10), 0.6)


def _tileable_noise(rng: np.random.Generator) -> Values:
    """Smooth periodic noise of three octaves, in [0, 1]."""
    total = np.zeros((TILE, TILE), np.float32)
    for weight, reach in ((0.35, 1), (0.35, 2), (0.3, 5)):
        layer = rng.standard_normal((TILE, TILE)).astype(np.float32)
        for axis in (0, 1):
            layer = np.mean([np.roll(layer, k, axis) for k in range(-reach, reach + 1)], axis=0)
        total += np.float32(weight) * layer / layer.std()
    total = 0.5 + 0.2 * total / total.std()
    noise: Values = np.clip(total, 0, 1).astype(np.float32)
    return noise


def _band(place: Values, low: float, high: float, footprint: Values) -> Values:
    """Part of each pixel that lies between two places, for pixels `footprint` wide."""
    inside = np.minimum(place - low, high - place) / footprint + 0.5
    part: Values = np.clip(inside, 0, np.minimum(1, (high - low) / footprint)).astype(np.float32)
    return part


def _dash_coverage(ahead: Values, footprint: Values) -> Values:
    """Part of each pixel that lies on a dash, averaged over the pixel's length on the ground."""

    def painted(distance: Values) -> Values:
        whole, rest = np.divmod(distance, DASH_PERIOD)
        return whole * DASH + np.minimum(rest, DASH)

    ends = painted(ahead + footprint / 2) - painted(ahead - footprint / 2)
    return (ends / footprint).astype(np.float32)


def _lay(ground: Values, colour: Values, coverage: Values) -> None:
    ground += coverage[:, :, None] * (colour - ground)
