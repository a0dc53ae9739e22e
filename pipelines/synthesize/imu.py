"""Motion as a sensor on the wrist feels it: gestures, and activities that repeat; none draws a digit."""

from __future__ import annotations

import numpy as np

from store.types import Hertz, Seconds

IMU_RATE: Hertz = 50.0
_GRAVITY = 9.81

# Cycles a second, then metres of the first and of the second harmonic along x y z, then radians of turning about x y z.
Motion = tuple[float, tuple[float, ...], tuple[float, ...], tuple[float, ...]]
_MOTIONS: dict[str, Motion] = {
    "nod": (0.8, (0.03, 0.2, 0.1), (0, 0.03, 0), (0.6, 0.05, 0.05)),
    "push": (0.6, (0.02, 0.02, 0.35), (0, 0, 0.08), (0.35, 0.05, 0.05)),
    "swipe": (0.8, (0.38, 0.03, 0.05), (0.04, 0, 0), (0.05, 0.1, 0.7)),
    "shake": (2.6, (0.1, 0.02, 0.02), (0, 0, 0.01), (0.1, 0.1, 0.4)),
    "twist": (1.0, (0.03, 0.03, 0.02), (0, 0, 0), (0.1, 1.2, 0.1)),
    "wave": (1.6, (0.16, 0.04, 0.02), (0.02, 0.03, 0), (0.1, 0.2, 0.8)),
    "walking": (0.95, (0.05, 0.08, 0.10), (0.01, 0.035, 0.02), (0.25, 0.1, 0.1)),
    "running": (1.45, (0.06, 0.10, 0.12), (0.02, 0.06, 0.03), (0.6, 0.2, 0.2)),
    "stirring": (1.3, (0.07, 0.01, 0.07), (0, 0, 0), (0.1, 0.25, 0.1)),
    "hammering": (1.8, (0.02, 0.14, 0.05), (0.01, 0.07, 0.02), (0.7, 0.05, 0.05)),
    "brushing": (3.2, (0.03, 0.005, 0.01), (0.004, 0, 0), (0.05, 0.1, 0.15)),
    "resting": (0.25, (0.004, 0.006, 0.003), (0, 0, 0), (0.02, 0.02, 0.02)),
}
MOTIONS = tuple(_MOTIONS)
_GESTURES = MOTIONS[:6]  # they rise from rest and return to it


def move(
    kind: str | Motion,
    rng: np.random.Generator,
    *,
    seconds: Seconds = 5.0,
    hz: Hertz = IMU_RATE,
    gesture: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Moves a wrist.

    Args:
        kind: a name in `MOTIONS`, or a motion of one's own.
        rng: the mover: size, pace, handedness, how the sensor sits.
        seconds: how long.
        hz: how often it is felt.
        gesture: whether the motion rises from rest and returns to it; None for what its name says.

    Returns:
        int64 ``[T]`` milliseconds, about `hz` with a little jitter, and float32 ``[T, 6]``: acceleration with gravity
        in m/s^2, angular rate in rad/s, both in the sensor's axes.
    """
    frequency, first, second, turn = _MOTIONS[kind] if isinstance(kind, str) else kind
    step = 1 / hz
    t = np.arange(int(seconds * hz)) * step
    cycle = (
        2 * np.pi * frequency * rng.uniform(0.85, 1.15) * (t + 0.05 * np.sin(rng.uniform(1, 2) * t + rng.uniform(0, 6)))
    )
    # The axes swing a quarter turn apart, and the mover adds a little of their own.
    phase = np.array([0, np.pi / 2, np.pi / 4]) + rng.normal(0, 0.25, 3)
    swing = np.sin(cycle[:, None] + phase) * first + np.sin(2 * cycle[:, None] + 2 * phase) * second
    angles = np.sin(cycle[:, None] + phase[::-1]) * turn
    if kind in _GESTURES if gesture is None else gesture:
        start, stop = np.sort(rng.uniform(0.08, 0.92, 2) * [0.5, 1.0]) * seconds
        rise = 1 / (1 + np.exp(-(t - start) / 0.12)) / (1 + np.exp((t - max(stop, start + 1.2)) / 0.12))
        swing, angles = swing * rise[:, None], angles * rise[:, None]
    mirror = rng.choice([-1.0, 1.0])
    swing = swing * rng.uniform(0.75, 1.25) * [mirror, 1, 1]
    angles = angles * rng.uniform(0.75, 1.25) * [1, mirror, mirror] + rng.normal(0, 0.35, 3)
    turned = _rotations(angles)
    world = np.gradient(np.gradient(swing, step, axis=0), step, axis=0) + [0, 0, _GRAVITY]
    felt = np.einsum("tji,tj->ti", turned, world)
    spin = np.einsum("tji,tjk->tik", turned, np.gradient(turned, step, axis=0))
    rates = np.stack([spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]], axis=1)
    signal = np.concatenate([felt + rng.normal(0, 0.06, felt.shape), rates + rng.normal(0, 0.015, rates.shape)], axis=1)
    return np.round(1000 * t + rng.uniform(0, 3, len(t))).astype(np.int64), signal.astype(np.float32)


def _rotations(angles: np.ndarray) -> np.ndarray:
    """Rotation matrices ``[T, 3, 3]``, sensor to world, of Euler angles ``[T, 3]`` about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles).T, np.sin(angles).T
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
