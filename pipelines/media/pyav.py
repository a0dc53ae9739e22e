"""Ordinary files, decoded in process: one pass for the timeline and the sound, then only the frames wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from pipelines.quality import Quality, Unfit
from store.types import Hertz, Seconds

# Playlists and scripts that name other files are not media: only real containers are opened, and only from disk.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegvideo,mpegts,mxf,nut,gif,apng,h264,hevc,ivf,"
    "wav,w64,aiff,au,caf,flac,ogg,mp3,aac,ac3,eac3,amr,ape,wv,tta"
)
ORDINARY = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"}
HDR_TRANSFERS = {16, 18}  # PQ and HLG
ATTACHED = av.stream.Disposition.attached_pic
# The same pixels on every machine, and the same as the filter graph's.
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
NEAR: Seconds = 1e-4  # clocks of two demuxers round differently; no frame is this short
GAP: Seconds = 0.05
MAX_DURATION: Seconds = 6 * 3600.0
MAX_PIXELS = 50_000_000


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file tells: its timeline, its sound, and what a filter graph must mend.

    Attributes:
        duration_s: end of the longest track, from the recording's start.
        times: seconds from the recording's start of every video frame, ascending, ``[F]``.
        pts: the same in the stream's own clock, None where the container gives none.
        packets: ``(pts, is key frame)`` in decoding order.
        rotation: degrees, counter-clockwise, that turn the picture upright.
        audio: int16 ``[T]`` mono from the recording's start, at the rate asked for.
        quality: columns for the gate and for people.
    """

    path: Path
    duration_s: Seconds
    times: np.ndarray = field(default_factory=lambda: np.empty(0))
    pts: tuple[int, ...] | None = None
    packets: tuple[tuple[int, bool], ...] = ()
    rotation: int = 0
    interlaced: bool = False
    hdr: bool = False
    codec: str = ""
    audio: np.ndarray | None = None
    quality: Quality = field(default_factory=dict)

    @property
    def needs_graph(self) -> bool:
        """Whether the picture needs a filter graph; decided by the file alone, never by the machine."""
        return bool(self.rotation or self.interlaced or self.hdr or self.pts is None or self.codec not in ORDINARY)


def on_screen(times: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Indices of the frames shown at `targets`: the last that began by then, or the first frame of all."""
    return np.maximum(np.searchsorted(times, np.asarray(targets) + NEAR, side="right") - 1, 0)


def scan(path: Path, *, audio_hz: Hertz | None = None, video: bool = True) -> Scan:
    """Read `path` once: the video's timeline without decoding it, the sound decoded when `audio_hz` is given.

    Raises:
        Unfit: the file is empty, is no media file, holds no track that was asked for, or lasts longer than 6 h.
    """
    with _open(path) as container:
        pictures = [s for s in container.streams.video if not s.disposition & ATTACHED][:1] if video else []
        sounds = list(container.streams.audio[:1]) if audio_hz else []
        if video and not pictures:
            raise Unfit(f"no video track in {path.name}")
        if not video and not sounds:
            raise Unfit(f"no audio track in {path.name}")
        if (container.duration or 0) / av.time_base > MAX_DURATION:
            raise Unfit(f"{path.name} is longer than {MAX_DURATION / 3600:g} h: cut it into parts")
        if any(stream.width * stream.height > MAX_PIXELS for stream in pictures):
            raise Unfit(f"{path.name} has more than {MAX_PIXELS // 10**6} million pixels a frame")
        zero = (container.start_time or 0) / av.time_base
        sound = _Sound(int(audio_hz or 0), zero)
        table: list[tuple[int | None, bool, int]] = []
        first: av.VideoFrame | None = None
        streams: list[Any] = [*pictures, *sounds]
        for packet in container.demux(streams):
            if packet.stream.type == "audio":
                sound.add(packet)
                continue
            if packet.size and not packet.is_discard:
                table.append((packet.pts, packet.is_keyframe, packet.duration or 0))
            if first is None:
                first = next(iter(_decode(packet)), None)
        quality: Quality = {}
        ends = [float((s.start_time or 0) + s.duration) * float(s.time_base) - zero for s in streams if s.duration]
        if container.duration:
            ends = ends or [container.duration / av.time_base]
            quality["declared_s"] = round(max(ends), 3)
        duration, samples = 0.0, None
        if sounds:
            samples = sound.finish()
            duration = len(samples) / sound.hz
            clipped = float(np.mean(np.abs(samples.astype(np.int32)) >= 32767)) if len(samples) else 0.0
            quality |= {"audio_s": round(duration, 3), "audio_decoded": sound.packets, "audio_errors": sound.errors}
            quality |= {"audio_clipped": round(clipped, 6)}
        if not pictures:
            return Scan(path, duration, audio=samples, quality=quality)
        if first is None or not table:
            raise Unfit(f"no frame of {path.name} can be decoded")
        stream = pictures[0]
        step = float(1 / stream.average_rate) if stream.average_rate else 0.04
        clock = stream.time_base or Fraction(1)
        if all(pts is not None for pts, _, _ in table):
            pts = tuple(sorted({p for p, _, _ in table if p is not None}))
            times = np.array([float(p * clock) - zero for p in pts])
        else:
            pts, times = None, np.arange(len(table)) * step
        last = float(table[-1][2] * clock) or step
        end = float(times[-1]) + last
        if end > MAX_DURATION:
            raise Unfit(f"the video's clock jumps beyond {MAX_DURATION / 3600:g} h")
        quality |= {"video_s": round(end, 3), "video_frames": len(times), "width": first.width, "height": first.height}
        quality |= {"fps": round(1 / step, 3)}
        if stream.frames:
            quality["video_frames_declared"] = stream.frames
        return Scan(
            path=path,
            duration_s=max(duration, end),
            times=times,
            pts=pts,
            packets=tuple((p, key) for p, key, _ in table if p is not None),
            rotation=int(first.rotation) % 360,
            interlaced=first.interlaced_frame,
            hdr=int(first.color_trc) in HDR_TRANSFERS,
            codec=stream.codec_context.name,
            audio=samples,
            quality=quality,
        )


def frames(found: Scan, targets: np.ndarray) -> Iterator[tuple[list[int], Image.Image]]:
    """The pictures on screen at `targets` (seconds, ascending), each with the positions in `targets` that it serves.

    Only groups of pictures that hold a wanted frame are decoded, and in them no frame that nothing depends on.
    """
    assert found.pts is not None
    wanted: dict[int, list[int]] = {}
    for position, index in enumerate(on_screen(found.times, targets)):
        wanted.setdefault(found.pts[index], []).append(position)
    needed = _needed(found.packets, wanted)
    feed, last = set(needed.tolist()), int(needed[-1])
    with _open(found.path) as container:
        stream = next(s for s in container.streams.video if not s.disposition & ATTACHED)
        context, number, former = stream.codec_context, -1, -1
        context.thread_count, reformatter = 1, VideoReformatter()

        def serve(decoded: Iterator[av.VideoFrame]) -> Iterator[tuple[list[int], Image.Image]]:
            for frame in decoded:
                if frame.pts in wanted and not frame.is_corrupt:
                    yield wanted.pop(frame.pts), rgb(frame, reformatter)

        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            number += 1
            if number > last:
                break
            if number not in feed:
                continue
            if number != former + 1 and former >= 0:
                yield from serve(_decode(context))
                context.flush_buffers()
            former = number
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from serve(_decode(packet))
        context.skip_frame = "DEFAULT"
        yield from serve(_decode(context))


def rgb(frame: av.VideoFrame, reformatter: VideoReformatter) -> Image.Image:
    """`frame` as a picture; a `reformatter` kept from frame to frame is several times faster than a new one."""
    return Image.fromarray(reformatter.reformat(frame, format="rgb24", interpolation=SCALING, threads=1).to_ndarray())


def _needed(packets: tuple[tuple[int, bool], ...], wanted: dict[int, list[int]]) -> np.ndarray:
    """Positions, in decoding order, of the packets that the wanted frames depend on."""
    pts = np.array([p for p, _ in packets])
    starts = np.flatnonzero([i == 0 or key for i, (_, key) in enumerate(packets)])
    ends = np.append(starts[1:], len(pts))
    upto: dict[int, int] = {}
    for place in np.flatnonzero(np.isin(pts, list(wanted))):
        group = int(np.searchsorted(starts, place, side="right")) - 1
        upto[group] = max(upto.get(group, 0), int(place) + 1)
        if group and pts[place] < pts[starts[group]]:  # an open group's leading frames lean on the group before
            upto[group - 1] = int(ends[group - 1])
    return np.concatenate([np.arange(starts[group], end) for group, end in sorted(upto.items())])


def _decode(source: Any) -> Iterator[Any]:
    """Frames of a packet, or what a codec context still holds; damage is silence here and a figure for the gate."""
    try:
        yield from source.decode()
    except (av.error.InvalidDataError, av.error.EOFError):
        return


class _Sound:
    """Mono PCM16 laid on the recording's timeline: a late start and gaps are silence."""

    def __init__(self, hz: int, zero: Seconds):
        self.hz, self.zero = hz, zero
        self.packets = self.errors = self.length = 0
        self._next: Seconds | None = None
        self._parts: list[np.ndarray] = []
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=hz or 16000)

    def add(self, packet: Any) -> None:
        self.packets += bool(packet.size)
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError:
            self.errors += 1
            return
        for frame in decoded:
            start = frame.time - self.zero if frame.time is not None else self._next or 0.0
            if start > MAX_DURATION:
                raise Unfit(f"the sound's clock jumps beyond {MAX_DURATION / 3600:g} h")
            if self._next is None or abs(start - self._next) > GAP:
                self._restart(round(start * self.hz))
            self._next = start + frame.samples / frame.sample_rate
            self._take(self._resampler.resample(frame))

    def finish(self) -> np.ndarray:
        if self._next is not None:
            self._take(self._resampler.resample(None))
        return np.concatenate(self._parts) if self._parts else np.empty(0, np.int16)

    def _restart(self, at: int) -> None:
        if self._next is not None:
            self._take(self._resampler.resample(None))
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=self.hz)
        if at > self.length:
            self._parts.append(np.zeros(at - self.length, np.int16))
            self.length = at

    def _take(self, resampled: list[av.AudioFrame]) -> None:
        for frame in resampled:
            part = frame.to_ndarray().reshape(-1)
            self._parts.append(part)
            self.length += len(part)


def _open(path: Path) -> InputContainer:
    if not path.stat().st_size:
        raise Unfit("the file is empty")
    try:
        # `file:` keeps a name with a colon or a leading dash a name.
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        container = av.open(f"file:{path.absolute()}", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        with open(path, "rb") as file:
            if file.read(12)[4:8] == b"ftyp":
                raise Unfit("the file is cut off: its index (moov) is missing") from error
        raise Unfit(f"not a media file: {path.name}") from error
    for stream in container.streams:
        if stream.type in ("video", "audio"):
            stream.codec_context.thread_count = 1
    return container
