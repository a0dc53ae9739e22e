"""Things that nobody has seen: invented shapes, each of its own colours and with a way of moving."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from pipelines.synthesize.scene import FPS, HEIGHT, WIDTH, Setting

MOTIONS = ("swing", "cross", "hop", "spin", "shake", "swell", "circle")
Part = tuple[np.ndarray, tuple[float, float, float]]


def _parts(family: int, kind: int) -> list[Part]:
    """Outlines ``[P, 2]`` in units of the thing's radius, with hue, saturation and brightness; the same always."""
    draw = np.random.default_rng([2718, family, kind])
    hue = (0.618 * kind + 0.37 * family) % 1
    parts: list[Part] = []
    for number in range(3 + kind % 3):
        corners = int(draw.choice([3, 4, 5, 16]))
        angles = 2 * np.pi * (np.arange(corners) + draw.uniform()) / corners
        size = draw.uniform(0.45, 0.95, 2) if number == 0 else draw.uniform(0.15, 0.5, 2)
        centre = draw.uniform(-0.15, 0.15, 2) if number == 0 else draw.uniform(-0.75, 0.75, 2)
        colour = ((hue + (0.0, 0.5, 0.08)[number % 3]) % 1, draw.uniform(0.6, 0.95), draw.uniform(0.45, 0.95))
        parts.append((centre + size * np.stack([np.cos(angles), np.sin(angles)], axis=1), colour))
    return parts


def _path(motion: str, t: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """How far right and down (in radii), how much turned (radians) and how large (ratio) a thing is at times `t`."""
    pace, start = 2 * np.pi * rng.uniform(0.5, 0.9), rng.uniform(0, 2 * np.pi)
    swing, none = np.sin(pace * t + start), np.zeros_like(t)
    if motion == "swing":
        return 0.3 * swing, none, 0.7 * swing, none + 1
    if motion == "cross":
        return (1.6 * (t * rng.uniform(0.5, 1.0) + start) % 5) - 2.5, none, none, none + 1
    if motion == "hop":
        return 0.4 * np.sin(0.3 * pace * t), -0.8 * np.abs(swing), 0.1 * swing, 1 + 0.1 * swing
    if motion == "spin":
        return none, none, 1.5 * pace * t + start, none + 1
    if motion == "shake":
        return 0.12 * np.sin(7 * pace * t), 0.1 * np.sin(6.1 * pace * t), 0.12 * np.sin(5.3 * pace * t), none + 1
    if motion == "swell":
        return none, none, none, 1 + 0.35 * swing
    return 0.9 * swing, 0.6 * np.cos(pace * t + start), none, none + 1


def show(
    place: Setting,
    family: int,
    kind: int,
    pulse: np.ndarray,
    *,
    rng: np.random.Generator,
    present: np.ndarray | None = None,
    clutter: int = 2,
) -> np.ndarray:
    """Films a thing.

    Args:
        place: where.
        family: which set of kinds it is one of.
        kind: which of them.
        pulse: ``[N]`` 0..1 at each frame: it grows by it, as with the sound it makes.
        rng: chance: size, place, pace, shade.
        present: bool ``[N]``: whether it is there at all; None for always.
        clutter: how many small things of no kind stand about.

    Returns:
        uint8 ``[N, 120, 160, 3]`` RGB at 25 frames a second.
    """
    count = len(pulse)
    t = np.arange(count) / FPS
    x, y, turn, size = _path(MOTIONS[kind % len(MOTIONS)], t, rng)
    radius, (left, top) = HEIGHT * rng.uniform(0.55, 0.8), rng.uniform([-60, -20], [60, 40])
    tint, shade = rng.normal(0, 0.02), rng.uniform(0.75, 1.1)
    parts = [(outline, _colour(hue + tint, s, v * shade)) for outline, (hue, s, v) in _parts(family, kind)]
    backdrop = Image.fromarray(place.backdrop)
    margin = (backdrop.width - 2 * WIDTH) // 2, (backdrop.height - 2 * HEIGHT) // 2
    stage = ImageDraw.Draw(backdrop)
    for _ in range(clutter):
        spot, small = rng.uniform([20, 20], [backdrop.width - 20, backdrop.height - 20]), rng.uniform(8, 26)
        stage.regular_polygon((*spot, small), int(rng.integers(3, 7)), fill=_colour(rng.uniform(), 0.4, rng.uniform()))
    pan = margin[0] * (1 + 0.4 * np.sin(rng.uniform(0.3, 0.8) * t + rng.uniform(0, 6)))
    mirror = rng.choice([-1.0, 1.0])
    light = [int(min(255, level * gain)) for gain in place.light for level in range(256)]
    noise = rng.integers(0, 2 * place.grain + 1, (8, HEIGHT, WIDTH, 1), dtype=np.uint8).repeat(3, axis=-1)
    grains, order = [Image.fromarray(layer) for layer in noise], rng.integers(0, 8, count)
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    for n in range(count):
        image = backdrop.crop((int(pan[n]), margin[1], int(pan[n]) + 2 * WIDTH, margin[1] + 2 * HEIGHT))
        if present is None or present[n]:
            draw = ImageDraw.Draw(image)
            scale, cos, sin = radius * size[n] * (1 + 0.15 * pulse[n]), np.cos(turn[n]), np.sin(turn[n])
            rotation = scale * np.array([[cos, sin], [-sin, cos]]) * [mirror, 1]
            at = np.array([WIDTH + left + radius * mirror * x[n], HEIGHT + top + radius * y[n]])
            for outline, fill in parts:
                draw.polygon([(float(px), float(py)) for px, py in outline @ rotation + at], fill=fill)
        frames[n] = np.asarray(ImageChops.add(image.reduce(2).point(light), grains[order[n]], offset=-place.grain))
    return frames


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(hue % 1, saturation, min(value, 1.0))
    return int(255 * r), int(255 * g), int(255 * b)
