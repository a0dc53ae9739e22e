"""Files whose picture needs a filter graph: one ffmpeg process deinterlaces, tone-maps, turns and scales it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from typing import IO

import av
import numpy as np

from pipelines.media.pyav import FORMATS, MAX_PIXELS, NEAR, Box, Picture, Scan, on_screen, pixels
from pipelines.quality import FOREVER, Deadline, Unfit

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
    found: Scan,
    targets: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    crop: Box | None = None,
    deadline: Deadline = FOREVER,
) -> Iterator[tuple[range, Picture]]:
    """The pictures on screen at `targets` (seconds, ascending), upright, cropped and `size` (width, height) large.

    Without a size they keep the first frame's. What ffmpeg did not reach before it ended is left out.

    Raises:
        Unfit: ffmpeg is not installed, cannot read the file, or takes too long.
    """
    program = executable()
    if program is None:
        raise Unfit(f"{found.path.name} needs ffmpeg (interlaced, HDR or an odd codec): install it, then retry")
    command = _command(program, found, size, crop)
    with (
        tempfile.TemporaryFile() as log,  # a pipe that nobody reads would fill up and stop ffmpeg for ever
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        timer = threading.Timer(min(deadline.left_s, threading.TIMEOUT_MAX), process.kill)
        timer.daemon = True
        timer.start()
        try:
            yield from _pick(process.stdout, found, targets)
            deadline.check()
        except av.error.FFmpegError as error:
            deadline.check()
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_END))
            words = log.read().decode(errors="replace").strip()
            if "No such filter: 'zscale'" in words:
                raise Unfit(f"{found.path.name} is HDR: install an ffmpeg that has zscale, then retry") from error
            last = words.splitlines()[-1] if words else error
            raise Unfit(f"ffmpeg cannot read {found.path.name}: {last}") from error
        finally:
            timer.cancel()
            process.kill()


def _command(program: str, found: Scan, size: tuple[int, int] | None, crop: Box | None) -> list[str]:
    import ffmpeg  # few recordings need it

    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file", "threads": 1, "max_pixels": MAX_PIXELS}
    options |= {"skip_frame": "nokey"} if found.key_frames else {}
    picture = ffmpeg.input(f"file:{found.path.absolute()}", noautorotate=None, **options)[str(found.stream)]
    if found.pts is not None:  # the recording's clock, whichever streams ffmpeg would count from
        picture = picture.filter("setpts", f"PTS-({found.zero!r})/TB")
    if found.interlaced:
        picture = picture.filter("yadif", deint="interlaced")
    if found.hdr:
        picture = picture.filter("zscale", t="linear", npl=100).filter("format", "gbrpf32le")
        picture = picture.filter("zscale", p="bt709").filter("tonemap", tonemap="hable")
        picture = picture.filter("zscale", t="bt709", m="bt709", r="tv").filter("format", "yuv420p")
    x, y, w, h = crop or (0.0, 0.0, 1.0, 1.0)
    if size is None:
        across, down = found.upright.size(int(found.quality["width"]), int(found.quality["height"]))
        size = max(1, round(w * across)), max(1, round(h * down))
    width, height = round(size[0] / w), round(size[1] / h)
    place = min(round(x * width), width - size[0]), min(round(y * height), height - size[1])
    scale = found.upright.size(width, height)
    picture = picture.filter("scale", *scale, flags="bicubic+accurate_rnd+bitexact+full_chroma_int")
    # Turned and cropped after scaling and in RGB: a crop of subsampled chroma would be rounded to even pixels.
    picture = picture.filter("format", "rgb24")
    turns = {"transpose": found.upright.transpose, "hflip": found.upright.mirror_x, "vflip": found.upright.mirror_y}
    for turn in (name for name, wanted in turns.items() if wanted):
        picture = picture.filter(turn, *(["cclock_flip"] if turn == "transpose" else []))
    picture = picture.filter("crop", *size, *place)
    output = {"fps_mode": "passthrough", "enc_time_base": f"1/{CLOCK}", "filter_threads": 1, "loglevel": "error"}
    graph = ffmpeg.output(picture, "pipe:", format="nut", vcodec="rawvideo", pix_fmt="rgb24", **output)
    return [program, *graph.global_args("-nostdin", "-hide_banner", "-copyts").get_args()]


def _pick(pipe: IO[bytes], found: Scan, targets: np.ndarray) -> Iterator[tuple[range, Picture]]:
    """Walk the pipe; a picture is served once the next one, or the end, shows that it was on screen at a target."""
    position, reached, shown = 0, 0.0, None
    with av.open(pipe, mode="r", format="nut") as container:
        for index, frame in enumerate(container.decode(video=0)):
            # Where the container gives no times, frames are counted.
            counted = float(found.times[min(index, len(found.times) - 1)])
            time = counted if found.pts is None else float(frame.time)
            until = position
            while shown is not None and until < len(targets) and targets[until] + NEAR < time:
                until += 1
            if shown is not None and until > position:
                yield range(position, until), pixels(shown)
                position = until
            if position == len(targets):
                return
            reached, shown = max(time, counted), frame
    # Had ffmpeg died midway, its last picture would stand for all the rest.
    meant = found.times[on_screen(found.times, targets)]
    until = int(np.searchsorted(meant, reached + 0.5 / float(found.quality["fps"] or 1) + NEAR))
    if shown is not None and until > position:
        yield range(position, until), pixels(shown)
