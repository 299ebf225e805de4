"""Where things are along the synthetic road: lanes, traffic, trees, houses, posts, signs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from data_pipeline.synthetic.canvas import Colour
from data_pipeline.synthetic.scenery import Thing

LANE = 3.6
"""Width of a lane in metres; the camera drives in the middle of lane 0, at X = 0."""

SHOULDER = 0.4
"""Metres of asphalt beyond the outer lines."""

VIEW = 140.0
"""Metres ahead up to which things are drawn; the haze hides the rest."""

POST_SPACING, LAMP_SPACING, SIGN_SPACING = 25, 38, 70

PAINTS = (
    (0.72, 0.07, 0.06), (0.08, 0.16, 0.45), (0.86, 0.86, 0.86), (0.10, 0.10, 0.11),
    (0.48, 0.50, 0.53), (0.86, 0.62, 0.08), (0.10, 0.34, 0.22), (0.55, 0.20, 0.10),
)  # fmt: skip
"""Colours of cars and signs."""


@dataclass(frozen=True)
class Road:
    """The lanes, and how fast the camera drives."""

    left: int
    """Lanes to the left of the camera's; the outermost one is for oncoming traffic."""

    right: int
    """Lanes to the right of the camera's."""

    speed: float
    """Metres per second."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """A road of two to four lanes."""
        left, right = int(rng.integers(1, 3)), int(rng.integers(0, 2))
        return cls(left, right, speed=float(rng.uniform(9, 26)))

    @property
    def edges(self) -> tuple[float, float]:
        """X of the left and the right end of the asphalt."""
        return (
            -LANE * (self.left + 0.5) - SHOULDER,
            LANE * (self.right + 0.5) + SHOULDER,
        )

    @property
    def marks(self) -> list[tuple[float, bool]]:
        """X of each painted line, and whether it is dashed."""
        lines = range(-self.left, self.right + 2)
        return [(LANE * (line - 0.5), line not in (lines[0], lines[-1])) for line in lines]


def place_things(
    rng: np.random.Generator, road: Road, grass: Colour, seconds: float
) -> list[Thing]:
    """Everything along a drive of `seconds`."""
    end = road.speed * seconds + VIEW
    return [
        *_plants_and_houses(rng, road, grass, end),
        *_furniture(rng, road, grass, end),
        *_traffic(rng, road, seconds),
    ]


def pick(rng: np.random.Generator, colours: Sequence[tuple[float, float, float]]) -> Colour:
    """One of the colours."""
    return np.array(colours[int(rng.integers(len(colours)))], np.float32)


def _plants_and_houses(
    rng: np.random.Generator, road: Road, grass: Colour, end: float
) -> list[Thing]:
    left, right = road.edges
    kinds = ("broadleaf", "conifer", "house")
    mix = rng.dirichlet((2.0, 2.0, 0.5))
    things = []
    for side, edge in ((-1, left), (1, right)):
        for z in np.arange(4, end, rng.uniform(5, 12)):
            kind = str(rng.choice(kinds, p=mix))
            if kind == "house":
                wall = np.array((1, 0.93, 0.82), np.float32) * np.float32(rng.uniform(0.5, 0.9))
                x = edge + side * (8.2 + rng.exponential(5))
                things.append(Thing(kind, x, z, rng.uniform(3.5, 5), wall))
            else:
                leaves = grass * np.float32(rng.uniform(0.5, 0.95))
                x = edge + side * (3.2 + rng.exponential(5))
                things.append(Thing(kind, x, z + rng.uniform(-2, 2), rng.uniform(4, 10), leaves))
    return things


def _furniture(rng: np.random.Generator, road: Road, grass: Colour, end: float) -> list[Thing]:
    left, right = road.edges
    things = []
    for x in (left - 1.2, right + 1.2):
        places = np.arange(rng.uniform(5, 30), end, POST_SPACING)
        things += [Thing("post", x, z, 1.0, grass) for z in places]
    if rng.random() < 0.6:
        x = float(rng.choice((left - 1.5, right + 1.5)))
        places = np.arange(rng.uniform(8, 40), end, LAMP_SPACING)
        things += [Thing("lamp_post", x, z, 7.5, grass) for z in places]
    places = np.arange(rng.uniform(20, 60), end, SIGN_SPACING)
    things += [Thing("sign", right + 1.4, z, 2.6, pick(rng, PAINTS)) for z in places]
    return things


def _traffic(rng: np.random.Generator, road: Road, seconds: float) -> list[Thing]:
    """A row of vehicles in each lane, all of a lane at one speed."""
    things = []
    for lane in range(-road.left, road.right + 1):
        oncoming = lane == -road.left
        speed = -rng.uniform(10, 24) if oncoming else road.speed + rng.uniform(-3, 3)
        reach = VIEW + (road.speed - speed) * seconds
        # Nobody is run over: the gap ahead outlasts the drive.
        first = 9 + max(0.0, road.speed - speed) * seconds if lane == 0 else 6
        for z in np.arange(first + rng.uniform(0, 25), reach, rng.uniform(22, 60)):
            size = 1.0 if rng.random() < 0.8 else 1.35
            place = z + rng.uniform(0, 8)
            things.append(Thing("vehicle", lane * LANE, place, size, pick(rng, PAINTS), speed))
    return things
