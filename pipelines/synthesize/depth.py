"""Rooms as a depth camera sees them: boxes in a box, in colour and in millimetres, cast ray by ray."""

from __future__ import annotations

import colorsys
import itertools
from dataclasses import dataclass

import numpy as np

from pipelines.synthesize.scene import HEIGHT, WIDTH

# A room's width and depth in metres; then what stands in it: a box's width, depth, height, the height it begins at,
# where its middle is across (from the left wall) and along (from the camera), 0..1 and several by commas, and its hue.
_TABLE = """
bathroom 2.2 2.8; .8 1.7 .55 0 .8 .6 .5; .5 .5 .85 0 .12 .75 .5
bedroom 3.8 4.4; 1.7 2 .55 0 .5 .72 .6; .45 .4 .6 0 .12 .9 .1
bookstore 4.2 5.5; .4 3 2 0 .05,.35,.65,.95 .65 .08
classroom 6.5 7.5; 1.1 .5 .75 0 .2,.5,.8 .4,.6,.8 .12
corridor 1.7 9; .3 .9 2 0 .05 .45 .1; .3 .9 2 0 .95 .7 .1
dining_room 4 4.6; 1.6 1 .08 .7 .5 .6 .06; .42 .42 .95 0 .25,.75 .5,.7 .06
home_office 3 3.4; 1.4 .7 .75 0 .6 .9 .1; .5 .5 1 0 .55 .65 .7; .35 1 1.9 0 .05 .7 .1
kitchen 3.2 3.8; 3.2 .6 .9 0 .5 .93 .04; 2.2 .35 .7 1.45 .4 .96 .04; .7 .7 1.8 0 .88 .7 .5
living_room 4.8 5; 2.1 .9 .45 0 .5 .82 0; 2.1 .25 .85 0 .5 .93 0; 1.1 .6 .4 0 .5 .55 .08
office 5 6; 1.5 .75 1.2 0 .2,.8 .45,.7,.95 .58
conference_room 4.6 6.5; 1.5 3.4 .75 0 .5 .62 .07; .5 .5 1 0 .2,.8 .45,.6,.75 .7
lecture_theatre 8 9; 6.5 .5 .6 0 .5 .4 .02; 6.5 .5 .95 0 .5 .55 .02; 6.5 .5 1.3 0 .5 .7 .02; 6.5 .5 1.65 0 .5 .85 .02
"""
Box = tuple[float, ...]
Room = tuple[float, float, list[Box]]  # width, depth, what stands in it


def _boxes(told: str) -> list[Box]:
    return list(itertools.product(*(map(float, cell.split(",")) for cell in told.split())))


_ROWS = [line.split(";") for line in _TABLE.strip().splitlines()]
_SCENES: dict[str, Room] = {
    name: (float(width), float(depth), [box for told in row[1:] for box in _boxes(told)])
    for row in _ROWS
    for name, width, depth in [row[0].split()]
}
SCENES = tuple(_SCENES)


@dataclass(frozen=True)
class Camera:
    """What a depth camera adds to the truth.

    Attributes:
        reach: metres beyond which nothing returns.
        noise: standard deviation at one metre, metres; it grows with the square of the distance.
        step: steps that distances are told in, metres.
        holes: share of pixels that nothing returns from, at edges most.
        tint: gains of red, green and blue.
    """

    reach: float
    noise: float
    step: float
    holes: float
    tint: tuple[float, float, float]


CAMERAS = {
    "kv1": Camera(8.0, 0.003, 0.004, 0.06, (1.05, 1.0, 0.9)),
    "kv2": Camera(7.5, 0.001, 0.001, 0.02, (1.0, 1.0, 1.0)),
    "realsense": Camera(4.0, 0.008, 0.002, 0.15, (0.85, 0.95, 1.15)),
    "xtion": Camera(6.0, 0.003, 0.01, 0.08, (0.95, 1.08, 0.95)),
}


def any_room(rng: np.random.Generator) -> Room:
    """A room of no kind in particular: two to eight boxes of any size, anywhere."""
    boxes = rng.uniform([0.3, 0.3, 0.3, 0, 0.05, 0.4, 0], [2, 1.5, 2, 0.2, 0.95, 0.95, 1], (rng.integers(2, 9), 7))
    return rng.uniform(2, 7), rng.uniform(2.5, 9), [tuple(box) for box in boxes.tolist()]


def view(
    scene: str | Room, room: np.random.Generator, rng: np.random.Generator, camera: Camera = CAMERAS["kv2"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Looks into a room.

    Args:
        scene: a name in `SCENES`, or a room.
        room: draws the room: its size, its colours, where things stand; begin it alike for another view of one room.
        rng: draws the view: where the camera stands and looks, its noise.
        camera: sees it.

    Returns:
        uint8 ``[120, 160, 3]`` RGB; uint16 ``[120, 160]`` depth as the camera tells it, millimetres, 0 = no return; and
        the same without holes.
    """
    width, depth, boxes = _SCENES[scene] if isinstance(scene, str) else scene
    size = np.array([width, 2.6, depth]) * room.uniform([0.85, 0.92, 0.85], [1.2, 1.1, 1.2])
    low, high, colours = _furnish(size, boxes, room)
    eye = np.array([size[0] * rng.uniform(0.4, 0.6), rng.uniform(1.3, 1.7), rng.uniform(0.1, 0.4)])
    yaw, pitch = rng.normal(0, 0.12), rng.uniform(0.05, 0.3)
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(u - WIDTH / 2) / 150, -(v - HEIGHT / 2) / 150, np.ones_like(u, float)])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    rays = np.einsum("ij,jvu->ivu", turn @ tilt, rays)
    inverse = 1 / np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    # Slabs: where a ray enters and leaves each box; the room is left, whatever stands in it is entered.
    walls = np.maximum((low[0] - eye)[:, None, None] * inverse, (high[0] - eye)[:, None, None] * inverse)
    distance, side = walls.min(axis=0), walls.argmin(axis=0)
    hit = np.zeros(distance.shape, int)
    for number in range(1, len(low)):
        near, far = ((corner - eye)[:, None, None] * inverse for corner in (low[number], high[number]))
        enters = np.minimum(near, far)
        into = enters.max(axis=0)
        seen = (into < np.maximum(near, far).min(axis=0)) & (into > 0.05) & (into < distance)
        hit[seen], distance[seen], side[seen] = number, into[seen], enters.argmax(axis=0)[seen]
    place = eye[:, None, None] + rays * distance
    return _coloured(place, hit, side, colours, camera, rng), *_measured(distance, camera, rng)


def _furnish(
    size: np.ndarray, boxes: list[Box], room: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper corners ``[B, 3]`` of the room and of what stands in it, and their colours ``[B, 3]``, 0..1."""
    corners = [(np.zeros(3), size)]
    tint = room.uniform()
    colours = [colorsys.hsv_to_rgb(tint, room.uniform(0.05, 0.25), room.uniform(0.6, 0.95))]
    for width, depth, height, base, across, along, hue in boxes:
        if len(corners) > 3 and room.uniform() < 0.15:
            continue
        extent = np.array([width, height, depth]) * room.uniform(0.85, 1.15)
        middle = np.array([across * size[0], base + extent[1] / 2, along * size[2]]) + room.normal(0, [0.12, 0, 0.12])
        corners.append((middle - extent / 2, middle + extent / 2))
        colours.append(colorsys.hsv_to_rgb((hue + room.normal(0, 0.06)) % 1, 0.55, room.uniform(0.35, 0.9)))
    return np.array([low for low, _ in corners]), np.array([high for _, high in corners]), np.array(colours)


def _coloured(
    place: np.ndarray, hit: np.ndarray, side: np.ndarray, colours: np.ndarray, camera: Camera, rng: np.random.Generator
) -> np.ndarray:
    """Every surface in its colour, by how it faces the light; boards on the floor."""
    light = np.array([0.75, 1.0, 0.88])[side] * rng.uniform(0.7, 1.15)
    light *= np.where((side == 1) & (hit == 0) & (np.floor(4 * place[0]) % 2 == 0), 0.85, 1.0)
    picture = colours[hit] * light[..., None] * camera.tint * 255
    return (picture + rng.normal(0, 4, hit.shape)[..., None]).clip(0, 255).astype(np.uint8)


def _measured(distance: np.ndarray, camera: Camera, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Depth as the camera tells it, and with its holes filled; both uint16 millimetres."""
    told = distance + camera.noise * distance**2 * rng.standard_normal(distance.shape)
    told = np.round(told / camera.step) * camera.step
    filled = np.where(distance < 10, 1000 * told, 0).clip(0, 60_000).astype(np.uint16)
    edges = np.hypot(*np.gradient(distance)) > 0.15
    lost = (rng.uniform(size=distance.shape) < np.where(edges, 0.6, camera.holes)) | (distance > camera.reach)
    return np.where(lost, 0, filled).astype(np.uint16), filled
