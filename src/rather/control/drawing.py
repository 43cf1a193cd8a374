"""Pictures of our environments, drawn with Pillow: no window system, no game library."""

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from rather.control.car import CheckpointCar
    from rather.control.grid import GridWorld

SIZE, SCALE = 256, 3
"""Pixels of a picture's side, and how much larger it is drawn before it is made smaller, which smooths edges."""

GRASS, ROAD, PAINT, ASLEEP, CAR, TRAIL = "#5b8c5a", "#4a4e57", "#f2c14e", "#8d939e", "#e4572e", "#b9c6d3"


def car(env: "CheckpointCar") -> np.ndarray:
    """The track from above, (256, 256, 3) bytes."""
    from rather.control.car import HALF_WIDTH, LINES, radius

    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), GRASS)
    draw = ImageDraw.Draw(image)
    zoom = SIZE * SCALE / 3.1

    def at(distance: float, angle: float) -> tuple[float, float]:
        middle = SIZE * SCALE / 2
        return middle + zoom * distance * math.cos(angle), middle - zoom * distance * math.sin(angle)

    around = [2 * math.pi * i / 240 for i in range(240)]
    for side, colour in ((1, ROAD), (-1, GRASS)):
        draw.polygon([at(radius(a) + side * HALF_WIDTH, a) for a in around], fill=colour)
    for line in range(LINES):
        angle = 2 * math.pi * line / LINES
        ends = [at(radius(angle) + side * HALF_WIDTH, angle) for side in (-1, 1)]
        draw.line(ends, fill=ASLEEP if line == env.asleep else PAINT, width=3 * SCALE)
    middle = SIZE * SCALE / 2
    trail = [(middle + zoom * x, middle - zoom * y) for x, y in env.trail[-40:]]
    if len(trail) > 1:
        draw.line(trail, fill=TRAIL, width=SCALE)
    x, y = trail[-1]
    cos, sin = math.cos(env.heading), math.sin(env.heading)
    body = [(0.10, 0.0), (0.03, 0.05), (-0.08, 0.05), (-0.08, -0.05), (0.03, -0.05)]
    draw.polygon([(x + zoom * (u * cos - v * sin), y - zoom * (u * sin + v * cos)) for u, v in body], fill=CAR)
    return np.asarray(image.reduce(SCALE))


def grid(env: "GridWorld") -> np.ndarray:
    """The cells, greener the more they pay and redder the more they cost, and the agent, (256, 256, 3) bytes."""
    image = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE), "white")
    draw = ImageDraw.Draw(image)
    n = env.size
    step = SIZE * SCALE / n
    largest = max(float(np.abs(env.rewards).max()), 1e-9)
    for row in range(n):
        for column in range(n):
            share = float(env.rewards[row, column]) / largest
            other = round(235 * (1 - abs(share)))
            colour = (other, 235, other) if share >= 0 else (235, other, other)
            box = (column * step, row * step, (column + 1) * step, (row + 1) * step)
            draw.rectangle(box, fill=colour, outline="#8d939e", width=SCALE)
    row, column = divmod(env.cell, n)
    draw.ellipse(((column + 0.25) * step, (row + 0.25) * step, (column + 0.75) * step, (row + 0.75) * step), fill=CAR)
    return np.asarray(image.reduce(SCALE))
