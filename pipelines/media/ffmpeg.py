"""Files whose picture needs a filter graph: one ffmpeg process turns, deinterlaces, tone-maps and scales it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from typing import IO

import av
import ffmpeg
import numpy as np
from PIL import Image

from pipelines.media.pyav import FORMATS, NEAR, Scan, on_screen
from pipelines.quality import Unfit

CLOCK = 90_000  # ticks a second of the pipe: fine enough for any frame rate, and every ffmpeg takes it
LOG_END = 4096  # bytes of ffmpeg's log that hold its last words


@functools.cache
def executable() -> str | None:
    """The system's ffmpeg, else the one that the imageio-ffmpeg package carries, else None."""
    if found := shutil.which("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None


def frames(
    found: Scan, targets: np.ndarray, *, size: tuple[int, int], crop: tuple[float, float, float, float] | None
) -> Iterator[tuple[list[int], Image.Image]]:
    """The pictures on screen at `targets` (seconds, ascending), upright, cropped and `size` (width, height) large.

    What ffmpeg did not reach before it ended is left out.

    Raises:
        Unfit: ffmpeg is not installed, or cannot read the file.
    """
    program = executable()
    if program is None:
        raise Unfit(
            f"{found.path.name} needs ffmpeg (rotated, interlaced, HDR or an odd codec): install it, then retry"
        )
    command = _command(program, found, size, crop)
    with (
        tempfile.TemporaryFile() as log,  # a pipe that nobody reads would fill up and stop ffmpeg for ever
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        try:
            yield from _pick(process.stdout, found, targets)
        except av.error.FFmpegError as error:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_END))
            words = log.read().decode(errors="replace").strip().splitlines()
            raise Unfit(f"ffmpeg cannot read {found.path.name}: {words[-1] if words else error}") from error
        finally:
            process.kill()


def _command(
    program: str, found: Scan, size: tuple[int, int], crop: tuple[float, float, float, float] | None
) -> list[str]:
    source = f"file:{found.path.absolute()}"
    picture = ffmpeg.input(source, format_whitelist=FORMATS, protocol_whitelist="file", threads=1).video
    if found.interlaced:
        picture = picture.filter("yadif")
    if found.hdr:
        picture = picture.filter("zscale", t="linear", npl=100).filter("format", "gbrpf32le")
        picture = picture.filter("zscale", p="bt709").filter("tonemap", tonemap="hable")
        picture = picture.filter("zscale", t="bt709", m="bt709", r="tv").filter("format", "yuv420p")
    x, y, w, h = crop or (0.0, 0.0, 1.0, 1.0)
    width, height = round(size[0] / w), round(size[1] / h)
    place = min(round(x * width), width - size[0]), min(round(y * height), height - size[1])
    picture = picture.filter("scale", width, height, flags="bicubic+accurate_rnd+bitexact+full_chroma_int")
    # Cropped after scaling and in RGB: a crop of subsampled chroma would be rounded to even pixels.
    picture = picture.filter("format", "rgb24").filter("crop", *size, *place)
    options = {"fps_mode": "passthrough", "enc_time_base": f"1/{CLOCK}", "filter_threads": 1, "loglevel": "error"}
    graph = ffmpeg.output(picture, "pipe:", format="nut", vcodec="rawvideo", pix_fmt="rgb24", **options)
    return [program, *graph.global_args("-nostdin", "-hide_banner").get_args()]


def _pick(pipe: IO[bytes], found: Scan, targets: np.ndarray) -> Iterator[tuple[list[int], Image.Image]]:
    """Walk the pipe; a picture is served once the next one, or the end, shows that it was on screen at a target."""
    position, reached, shown = 0, 0.0, None
    with av.open(pipe, mode="r", format="nut") as container:
        for index, frame in enumerate(container.decode(video=0)):
            # Where the container gives no times, frames are counted; else ffmpeg's own start at 0 is the recording's.
            time = float(found.times[min(index, len(found.times) - 1)]) if found.pts is None else float(frame.time)
            until = position
            while shown is not None and until < len(targets) and targets[until] + NEAR < time:
                until += 1
            if shown is not None and until > position:
                yield list(range(position, until)), shown.to_image()
                position = until
            if position == len(targets):
                return
            # The pictures' count tells as well how far ffmpeg came, should its clock start elsewhere.
            reached, shown = max(time, float(found.times[min(index, len(found.times) - 1)])), frame
    # Had ffmpeg died midway, its last picture would stand for all the rest.
    meant = found.times[on_screen(found.times, targets)]
    until = int(np.searchsorted(meant, reached + 0.5 / float(found.quality["fps"] or 1) + NEAR))
    if shown is not None and until > position:
        yield list(range(position, until)), shown.to_image()
