"""Pictures of our environments, drawn with Pillow: no window system, no game library."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
"""(x, y) in the lengths of the environment, y upwards, (0, 0) in the middle of the picture."""

SIZE, SCALE = 256, 3
"""Pixels of a picture's side, and how much larger it is drawn before it is made smaller, which smooths edges."""

GRASS, ROAD, PAINT, ASLEEP, CAR, TRAIL = "#5b8c5a", "#4a4e57", "#f2c14e", "#8d939e", "#e4572e", "#b9c6d3"
BODY = ((0.10, 0.0), (0.03, 0.05), (-0.08, 0.05), (-0.08, -0.05), (0.03, -0.05))
"""Corners of a car that heads to the right."""


def car(
    edges: tuple[Sequence[Point], Sequence[Point]], lines: Sequence[tuple[Point, Point]], asleep: int | None, trail: Sequence[Point],
    heading: float,
) -> np.ndarray:  # fmt: skip
    """A track from above, (256, 256, 3) bytes, with the car at the end of its `trail`.

    `edges` are the outer and the inner one of the road; of the checkpoint `lines`, the one with the number `asleep` is grey.
    """
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), GRASS)
    draw = ImageDraw.Draw(image)
    middle, zoom = SIZE * SCALE / 2, SIZE * SCALE / 3.1

    def pixels(points: Sequence[Point]) -> list[Point]:
        return [(middle + zoom * x, middle - zoom * y) for x, y in points]

    for edge, color in zip(edges, (ROAD, GRASS), strict=True):
        draw.polygon(pixels(edge), fill=color)
    for number, ends in enumerate(lines):
        draw.line(pixels(ends), fill=ASLEEP if number == asleep else PAINT, width=3 * SCALE)
    if len(trail) > 1:
        draw.line(pixels(trail), fill=TRAIL, width=SCALE)
    (x, y), cos, sin = trail[-1], math.cos(heading), math.sin(heading)
    draw.polygon(pixels([(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in BODY]), fill=CAR)
    return np.asarray(image.reduce(SCALE))


def grid(rewards: np.ndarray, cell: int) -> np.ndarray:
    """The cells of a grid with `rewards` (size, size), greener the more and redder the less, and the agent in one: (256, 256, 3) bytes."""
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), "white")
    draw = ImageDraw.Draw(image)
    n = len(rewards)
    step = SIZE * SCALE / n
    largest = max(float(np.abs(rewards).max()), 1e-9)
    for row in range(n):
        for column in range(n):
            share = float(rewards[row, column]) / largest
            other = round(235 * (1 - abs(share)))
            color = (other, 235, other) if share >= 0 else (235, other, other)
            box = (column * step, row * step, (column + 1) * step, (row + 1) * step)
            draw.rectangle(box, fill=color, outline="#8d939e", width=SCALE)
    row, column = divmod(cell, n)
    draw.ellipse(((column + 0.25) * step, (row + 0.25) * step, (column + 0.75) * step, (row + 0.75) * step), fill=CAR)
    return np.asarray(image.reduce(SCALE))
