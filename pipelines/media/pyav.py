"""Ordinary files, decoded in process: one pass for the timeline and the sound, then only the frames wanted."""

from __future__ import annotations

import contextlib
import stat
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from pipelines.media import stills, whole
from pipelines.quality import FOREVER, Deadline, Quality, Unfit
from store.types import Seconds

# Playlists and scripts that name other files are not media: only real containers are opened, and only from disk.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,asf,mpeg,mpegvideo,mpegts,mxf,nut,gif,apng,h264,hevc,ivf,"
    "wav,w64,aiff,au,caf,flac,ogg,mp3,aac,ac3,eac3,amr,ape,wv,tta"
)
ORDINARY = {"h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "mpeg1video", "mpeg2video", "mjpeg"}
CHECKED = {"flac", "tta", "wavpack"}  # codecs with a checksum a frame, which is not looked at unless asked for
HDR_TRANSFERS = {16, 18}  # PQ and HLG
# The same pixels on every machine, and the same as the filter graph's.
SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
NEAR: Seconds = 1e-4  # clocks of two demuxers round differently; no frame is this short
GAP: Seconds = 0.008  # sound this far off its place is moved there: half a frame at 60 a second
MAX_BACK: Seconds = 1.0
MAX_REORDER = 17  # frames that a codec may show later than they are stored
MAX_DURATION: Seconds = 6 * 3600.0
MAX_PIXELS = 50_000_000
SOUND_RATES = range(1_000, 1_000_001)  # hertz; one packet at 1 Hz would be resampled to gigabytes
HELD_BYTES = 32 << 20  # of video packets kept from the first pass, so that short files are read once
MIXED_SAMPLES = 16_384  # at a time: a filter graph costs by the call
SPOOL_BYTES = 8 << 20  # of sound kept in memory
NO_TIME = -(1 << 63)

Box = tuple[float, float, float, float]
Picture = NDArray[np.uint8]


class Interlaced(Exception):  # noqa: N818 - told to the one who then takes the filter graph
    """A frame turned out to be interlaced where the first one was not."""


class Sound:
    """Mono PCM16 ``[T]`` on the recording's timeline, in memory while it is short; slices are arrays.

    Where nothing was written it is silent.
    """

    def __init__(self, hz: int):
        self.hz, self._length = hz, 0
        self._file = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, window: slice) -> NDArray[np.int16]:
        start, stop, _ = window.indices(self._length)
        self._file.seek(2 * start)
        return np.frombuffer(self._file.read(2 * max(0, stop - start)), np.int16)

    def write(self, at: int, samples: bytes) -> None:
        """Lay `samples` down from sample `at` on; what lies before the recording's start is left out."""
        samples, at = samples[max(0, -2 * at) :], max(0, at)
        if 2 * at > SPOOL_BYTES:
            self._file.rollover()  # or a gap of hours would be filled in memory first
        self._file.seek(2 * at)
        self._file.write(samples)
        self._length = max(self._length, at + len(samples) // 2)

    def close(self) -> None:
        """Free its memory and its file."""
        self._file.close()


@dataclass(frozen=True, slots=True)
class Upright:
    """How the stored picture becomes the one that is meant to be seen: transposed first, then mirrored."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Upright:
        """What the frame's display matrix asks for, to a quarter turn."""
        # A frame whose side data was read refers to itself and lives on; so a small copy is asked.
        matrix = frame.reformat(16, 16, interpolation=Interpolation.POINT).side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()  # type: ignore[call-overload]
        straight = abs(a) + abs(d) >= abs(b) + abs(c)
        return cls(False, a < 0, d < 0) if straight else cls(True, c < 0, b < 0)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after, of those before, and the other way round."""
        return (height, width) if self.transpose else (width, height)

    def turn(self, picture: Picture) -> Picture:
        """The upright picture, a view."""
        picture = picture.swapaxes(0, 1) if self.transpose else picture
        return picture[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


@dataclass(frozen=True, slots=True)
class Scan:
    """What one pass over a file tells: its timeline, its sound, and what a filter graph must mend.

    Attributes:
        duration_s: end of the longest track, from the recording's start.
        zero: the picture's time in the container at the recording's start, seconds.
        stream: the video's number in the container.
        times: seconds from the recording's start of every video frame, ascending, ``[F]``.
        pts: the same in the stream's own clock, None where the container gives none.
        packet_pts: of all packets, in decoding order, ``[P]``.
        packet_keys: which of them hold a key frame, ``[P]``.
        held: the packets themselves, where they are few.
        key_frames: only key frames are meant to be seen.
        audio: the sound from the recording's start, at the rate asked for.
        quality: columns for the gate and for people.
    """

    path: Path
    duration_s: Seconds
    zero: Seconds = 0.0
    stream: int = 0
    times: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    pts: NDArray[np.int64] | None = None
    packet_pts: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    packet_keys: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, bool))
    held: tuple[Any, ...] = ()
    key_frames: bool = False
    upright: Upright = Upright()
    interlaced: bool = False
    hdr: bool = False
    codec: str = ""
    audio: Sound | None = None
    quality: Quality = field(default_factory=dict)
    container: InputContainer | None = None

    @property
    def needs_graph(self) -> bool:
        """Whether the picture needs a filter graph; decided by the file alone, never by the machine."""
        return bool(self.interlaced or self.hdr or self.pts is None or self.codec not in ORDINARY)

    def only_key_frames(self) -> Scan:
        """The same file, of which only key frames are shown, each until the next."""
        if self.pts is None:
            return replace(self, times=self.times[self.packet_keys], key_frames=True)
        shown = np.isin(self.pts, self.packet_pts[self.packet_keys])
        return replace(self, times=self.times[shown], pts=self.pts[shown], key_frames=True) if shown.any() else self

    def close(self) -> None:
        """Let go of the file and of the sound."""
        if self.container is not None:
            self.container.close()
        if self.audio is not None:
            self.audio.close()


def on_screen(times: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Indices of the frames shown at `targets`: the last that began by then, or the first frame of all."""
    return np.maximum(np.searchsorted(times, np.asarray(targets) + NEAR, side="right") - 1, 0)


def scan(path: Path, *, audio_hz: int | None = None, video: bool = True, deadline: Deadline = FOREVER) -> Scan:
    """Read `path` once: the video's timeline without decoding it, the sound decoded when `audio_hz` is given.

    Of several tracks the one marked as default is taken, else the first. The result is to be closed.

    Raises:
        Unfit: the file is empty, is no media file, holds no track that was asked for, or lasts longer than 6 h.
    """
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(contextlib.closing(_open(path)))
        whole.check(path)
        picture, voice = _track(container.streams.video) if video else None, _track(container.streams.audio)
        if video and picture is None:
            unknown = any(s.type == "video" and s.codec_context is None for s in container.streams)
            raise Unfit(f"{'unknown video codec' if unknown else 'no video track'} in {path.name}")
        if audio_hz is None:
            voice = None
        if not video and voice is None:
            raise Unfit(f"no audio track in {path.name}")
        if (container.duration or 0) / av.time_base > MAX_DURATION:
            raise Unfit(f"{path.name} is longer than {MAX_DURATION / 3600:g} h: cut it into parts")
        if picture is not None and picture.width * picture.height > MAX_PIXELS:
            raise Unfit(f"{path.name} has more than {MAX_PIXELS // 10**6} million pixels a frame")
        if voice is not None and voice.rate not in SOUND_RATES:
            raise Unfit(f"{path.name} has sound at a rate of {voice.rate} Hz")
        zero = (container.start_time or 0) / av.time_base
        sound = _Listener(audio_hz, zero) if voice is not None and audio_hz else None
        if sound is not None:
            stack.callback(sound.sound.close)
        table, keys, shown, held = array("q"), array("b"), array("b"), []
        first: av.VideoFrame | None = None
        size, last_duration = 0, 0
        streams = [stream for stream in (picture, voice) if stream is not None]
        for packet in _packets(container, *streams):
            deadline.check()
            if sound is not None and packet.stream is voice:
                sound.hear(packet)
                continue
            if packet.size:
                table.append(NO_TIME if packet.pts is None else packet.pts)
                keys.append(packet.is_keyframe)
                shown.append(not packet.is_discard)  # what lies before an edit list's start is decoded, never shown
                last_duration = packet.duration or 0
                size += packet.size
                held.append(packet)
                if size > HELD_BYTES:
                    held.clear()
            if first is None:
                first = next(iter(_decode(packet, [])), None)
        quality: Quality = {}
        ends = [float((s.start_time or 0) + s.duration) * float(s.time_base) - zero for s in streams if s.duration]
        if container.duration:  # which some containers count from their clock's 0, others from their start
            quality["declared_s"] = round(max(ends or [container.duration / av.time_base - max(zero, 0.0)]), 3)
        duration, audio = 0.0, None
        if sound is not None:
            audio = sound.finish()
            duration = len(audio) / audio.hz
            quality |= {"audio_s": round(duration, 3), "audio_decoded": sound.packets, "audio_errors": sound.errors}
            quality |= {"audio_clipped": round(sound.clipped / max(len(audio), 1), 6)}
        if picture is None:
            stack.pop_all()
            return Scan(path, duration, zero=zero, audio=audio, quality=quality, container=container)
        if first is None or not any(shown):
            raise Unfit(f"no frame of {path.name} can be decoded")
        step = float(1 / picture.average_rate) if picture.average_rate else 0.04
        clock = float(picture.time_base or Fraction(1))
        packet_pts, visible = np.frombuffer(table, np.int64), np.frombuffer(shown, bool)
        pts = None if (packet_pts == NO_TIME).any() else np.unique(packet_pts[visible])
        if pts is not None:
            back = float((np.maximum.accumulate(packet_pts) - packet_pts).max()) * clock
            if back > max(MAX_BACK, MAX_REORDER * step):
                raise Unfit(f"the video's clock goes back by {back:.1f} s")
        if pts is not None and container.format.name == "avi":  # its times of decoding, put late by the reordering
            zero += float(pts[0] - (picture.start_time or 0)) * clock
        times = np.arange(visible.sum()) * step if pts is None else pts * clock - zero
        end = float(times[-1]) + (last_duration * clock or step)
        if end > MAX_DURATION:
            raise Unfit(f"the video's clock jumps beyond {MAX_DURATION / 3600:g} h")
        quality |= {"video_s": round(end, 3), "video_frames": len(times), "width": first.width, "height": first.height}
        quality |= {"fps": round(1 / step, 3)}
        if picture.frames:
            quality["video_frames_declared"] = picture.frames - int((~visible).sum())
        stack.pop_all()
        return Scan(
            path=path,
            duration_s=max(duration, end),
            zero=zero,
            stream=picture.index,
            times=times,
            pts=pts,
            packet_pts=packet_pts,
            packet_keys=np.frombuffer(keys, bool),
            held=tuple(held) if size <= HELD_BYTES else (),
            upright=Upright.of(first),
            interlaced=first.interlaced_frame,
            hdr=int(first.color_trc) in HDR_TRANSFERS,
            codec=picture.codec_context.name,
            audio=audio,
            quality=quality,
            container=container,
        )


def frames(
    found: Scan,
    targets: np.ndarray,
    *,
    size: tuple[int, int] | None = None,
    crop: Box | None = None,
    deadline: Deadline = FOREVER,
) -> Iterator[tuple[range, Picture]]:
    """The pictures on screen at `targets` (seconds, ascending), each with the positions in `targets` that it serves.

    They are upright, cropped and `size` (width, height) large; None keeps their own size. Only groups of pictures
    that hold a wanted frame are decoded, and in them no frame that nothing depends on.

    Raises:
        Interlaced: a wanted frame is; those before have been served.
    """
    assert found.pts is not None
    shown, first = np.unique(on_screen(found.times, targets), return_index=True)
    spans = map(range, first.tolist(), [*first[1:].tolist(), len(targets)])
    wanted = dict(zip(found.pts[shown].tolist(), spans, strict=True))
    needed = _needed(found, found.pts[shown])
    last = int(np.flatnonzero(needed)[-1])
    with contextlib.ExitStack() as stack:
        packets: Iterable[Any] = found.held
        if not packets:
            container = stack.enter_context(contextlib.closing(_open(found.path)))
            packets = _packets(container, container.streams[found.stream])
        context, number, former, reformatter = None, -1, -1, VideoReformatter()
        broken = False  # what leans on a damaged frame is damaged, up to the next key frame

        def serve(source: Any) -> Iterator[tuple[range, Picture]]:
            nonlocal broken
            errors: list[Exception] = []
            for frame in _decode(source, errors):
                broken = bool(frame.is_corrupt or (broken and not frame.key_frame))
                if frame.pts in wanted and not broken:
                    if frame.interlaced_frame:
                        raise Interlaced
                    yield wanted.pop(frame.pts), _picture(frame, reformatter, found.upright, size, crop)
            broken = broken or bool(errors)

        for packet in packets:
            if not packet.size:
                continue
            number += 1
            if number > last:
                break
            if not needed[number]:
                continue
            deadline.check()
            if context is None:
                context = packet.stream.codec_context
                context.flush_buffers()  # of what the first pass left in it
            if number != former + 1 and former >= 0:
                yield from serve(context)
                context.flush_buffers()
            former = number
            context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
            yield from serve(packet)
        if context is not None:
            context.skip_frame = "DEFAULT"
            yield from serve(context)


def pixels(frame: av.VideoFrame) -> Picture:
    """Those of a picture that is RGB already, ``[H, W, 3]``."""
    return cast(Picture, frame.to_ndarray())


def _picture(
    frame: av.VideoFrame,
    reformatter: VideoReformatter,  # kept from frame to frame: several times faster than a new one
    upright: Upright,
    size: tuple[int, int] | None,
    crop: Box | None,
) -> Picture:
    width, height = upright.size(*size) if size and not crop else (None, None)
    scaled = reformatter.reformat(frame, width, height, format="rgb24", interpolation=SCALING, threads=1)
    picture = upright.turn(pixels(scaled))
    return np.asarray(stills.fit(Image.fromarray(picture), size, crop)) if crop else picture


def _needed(found: Scan, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which packets, in decoding order, the wanted frames depend on, ``[P]``."""
    pts, opens = found.packet_pts, found.packet_keys.copy()
    opens[0] = True
    group, starts = np.cumsum(opens) - 1, np.flatnonzero(opens)
    places = np.flatnonzero(np.isin(pts, wanted))
    upto = np.zeros(len(starts), np.int64)
    np.maximum.at(upto, group[places], places + 1)
    leading = places[(pts[places] < pts[starts[group[places]]]) & (group[places] > 0)]
    upto[group[leading] - 1] = starts[group[leading]]  # an open group's leading frames lean on the group before
    needed: NDArray[np.bool_] = np.arange(len(pts)) < upto[group]
    return needed


def _track(streams: Any) -> Any:
    """The stream that is the recording's: by default, else the first; a cover picture is none."""
    tracks = [
        s for s in streams if s.codec_context is not None and not s.disposition & av.stream.Disposition.attached_pic
    ]
    return next((s for s in tracks if s.disposition & av.stream.Disposition.default), next(iter(tracks), None))


def _packets(container: InputContainer, *streams: Any) -> Iterator[Any]:
    try:
        yield from container.demux(*streams)
    except av.error.FFmpegError as error:
        raise Unfit(f"the file cannot be read to its end: {error.strerror}") from error


def _decode(source: Any, errors: list[Exception]) -> Iterator[Any]:
    """Frames of a packet, or what a codec context still holds; damage is noted in `errors`, a figure for the gate."""
    try:
        yield from source.decode()
    except av.error.EOFError:
        return
    except av.error.FFmpegError as error:
        errors.append(error)


class _Listener:
    """Decodes a track's packets, mixes them down and lays them in their place."""

    def __init__(self, hz: int, zero: Seconds):
        self.sound, self.zero = Sound(hz), zero
        self.packets = self.errors = self.clipped = 0
        self._form: tuple[Any, ...] = ()
        self._begin, self._given = 0.0, 0  # where this unbroken stretch began, and samples decoded since
        self._at = 0  # where what comes next is laid
        self._fifo, self._resampler = av.AudioFifo(), av.AudioResampler(format="s16", layout="mono", rate=hz)

    def hear(self, packet: Any) -> None:
        """Take a packet of the track."""
        self.packets += bool(packet.size)
        try:
            decoded = packet.decode()
        except av.error.FFmpegError:
            self.errors += 1
            return
        for frame in decoded:
            self._take(frame)

    def finish(self) -> Sound:
        """All that was heard."""
        self._flush()
        return self.sound

    def _take(self, frame: av.AudioFrame) -> None:
        rate, form = frame.sample_rate, (frame.sample_rate, frame.format.name, frame.layout.name)
        due = self._begin + self._given / rate
        start = due if frame.time is None else frame.time - self.zero
        if self._form and due - start > MAX_BACK:
            raise Unfit(f"the sound's clock goes back by {due - start:.1f} s")
        if start > MAX_DURATION:
            raise Unfit(f"the sound's clock jumps beyond {MAX_DURATION / 3600:g} h")
        if form != self._form or abs(start - due) > GAP:
            self._flush()
            self._form, self._begin, self._given = form, start, 0
            self._at = round(start * self.sound.hz)
        self._given, frame.pts = self._given + frame.samples, None
        self._fifo.write(frame)
        if self._fifo.samples >= MIXED_SAMPLES:
            self._lay(self._fifo.read())

    def _flush(self) -> None:
        if self._form:
            self._lay(self._fifo.read(partial=True))
            self._lay(None)
        self._fifo = av.AudioFifo()
        self._resampler = av.AudioResampler(format="s16", layout="mono", rate=self.sound.hz)

    def _lay(self, frame: av.AudioFrame | None) -> None:
        try:
            mix = self._resampler.resample(frame)
        except av.error.FFmpegError as error:
            rate, _, layout = self._form
            raise Unfit(f"sound of {layout} at {rate} Hz cannot be mixed down") from error
        for mixed in mix:
            samples = np.frombuffer(memoryview(mixed.planes[0]), np.int16)[: mixed.samples]
            self.clipped += int(np.count_nonzero((samples == 32767) | (samples <= -32767)))
            self.sound.write(self._at, samples.tobytes())
            self._at += len(samples)


def _open(path: Path) -> InputContainer:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise Unfit(f"{path.name} is no regular file")
    if not status.st_size:
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
        if stream.type in ("video", "audio") and stream.codec_context is not None:
            stream.codec_context.thread_count = 1
            if stream.type == "video":  # a later frame may be larger than the container says
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            if stream.codec_context.name in CHECKED:
                stream.codec_context.options = {"err_detect": "crccheck+explode"}
    return container
