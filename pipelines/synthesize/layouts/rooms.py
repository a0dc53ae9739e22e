"""Indoor scenes in colour and depth, in the layouts of NYU Depth V2 (its raw frames) and SUN RGB-D.

- NYU: ``raw_data/{train,val}/<scene>_<nnnn>/<frame>/{rgb.png,depth.png}``, depth in millimetres as 16-bit PNG
- SUN: ``SUNRGBD/<camera>/<set>/<view>/`` with ``image/*.jpg``, ``depth/*.png``, ``depth_bfx/*.png`` (holes filled),
  ``scene.txt``, ``intrinsics.txt``, ``extrinsics/*.txt`` and ``annotation2Dfinal/index.json``; depth d in millimetres
  stands as ``d << 3 | d >> 13``. A camera is a domain: other reach, noise, holes and tint. No allsplit.mat is written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.synthesize.depth import CAMERAS, SCENES, view
from pipelines.synthesize.layouts.writing import Row, Run

_FRAMES = 3  # views of a room
# Where the views of a camera lie, and how they are called; those of the last are frames of films.
_SETS = {"kv1": "NYUdata", "kv2": "kinect2data", "realsense": "lg", "xtion": "sun3ddata"}


def nyu_depth(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes NYU's layout into the empty folder `out`: rooms of three views, every fourth a val room."""
    scenes = SCENES[: min(len(SCENES), max(4, recordings // 24))]
    jobs: list[Callable[[], Row]] = []
    for number in range(max(4 * len(scenes), recordings // _FRAMES)):
        scene, room = scenes[number % len(scenes)], number // len(scenes)
        folder = out / "raw_data" / ("val" if room % 4 == 3 else "train") / f"{scene}_{room + 1:04d}"
        for frame in range(_FRAMES):
            draw = (seed, 7, number, frame)
            jobs.append(partial(_nyu_view, folder / f"{frame:05d}", scene, draw))
    run(jobs)


def _nyu_view(folder: Path, scene: str, draw: tuple[int, ...]) -> Row:
    colour, depth, _ = view(scene, np.random.default_rng(draw[:-1]), np.random.default_rng(draw), CAMERAS["kv1"])
    folder.mkdir(parents=True)
    Image.fromarray(colour).save(folder / "rgb.png")
    Image.fromarray(depth).save(folder / "depth.png")
    return {}


def sun_rgbd(out: Path, *, seed: int, recordings: int, run: Run) -> None:
    """Writes SUN RGB-D's layout into the empty folder `out`, its four cameras in turn."""
    scenes = [scene for scene in SCENES if scene != "bookstore"]  # none of SUN's common scenes
    scenes = scenes[: min(len(scenes), max(4, recordings // 24))]
    jobs: list[Callable[[], Row]] = []
    for number in range(max(4 * len(scenes), recordings)):
        turn, kind = divmod(number, len(scenes))
        camera = list(CAMERAS)[turn % len(CAMERAS)]
        film = camera == "xtion"
        place = f"{scenes[kind]}_{turn // 8:03d}/{turn:05d}" if film else f"{camera.upper()}{number:05d}"
        room = (seed, 8, kind, turn // 8) if film else (seed, 9, kind, turn)
        folder = out / "SUNRGBD" / camera / _SETS[camera] / place
        jobs.append(partial(_sun_view, folder, scenes[kind], camera, room, (seed, 10, number)))
    run(jobs)


def _sun_view(folder: Path, scene: str, camera: str, room: tuple[int, ...], draw: tuple[int, ...]) -> Row:
    colour, depth, filled = view(scene, np.random.default_rng(room), np.random.default_rng(draw), CAMERAS[camera])
    for name in ("image", "depth", "depth_bfx", "extrinsics", "annotation2Dfinal"):
        (folder / name).mkdir(parents=True)
    name = folder.name
    Image.fromarray(colour).save(folder / "image" / f"{name}.jpg", quality=90)
    for kind, millimetres in (("depth", depth), ("depth_bfx", filled)):
        Image.fromarray(millimetres << 3 | millimetres >> 13).save(folder / kind / f"{name}.png")
    (folder / "scene.txt").write_text(scene)
    (folder / "intrinsics.txt").write_text("150 0 80\n0 150 60\n0 0 1\n")
    (folder / "extrinsics" / f"{name}.txt").write_text("1 0 0\n0 1 0\n0 0 1\n")
    (folder / "annotation2Dfinal" / "index.json").write_text("{}\n")
    return {}
