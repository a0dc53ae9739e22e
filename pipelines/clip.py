"""From a recording's window to a sample: the one place that cuts, for ingest and for predict."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipelines.archive import unpacked
from pipelines.media import depth, ffmpeg, imu, pyav, stills
from pipelines.media.shift import Babbled, veiled
from pipelines.quality import Deadline, Quality, Unfit, gate
from store.types import Clip, Hertz, Modality, Recording, Sample, Seconds, Shift, Track, clip_key

MAIN = (Modality.VIDEO, Modality.AUDIO, Modality.IMAGE, Modality.IMU, Modality.DEPTH, Modality.TEXT)
END_SLACK: Seconds = 0.5
STILLS_HZ: Hertz = 1.0
MAX_BYTES = 256 << 20  # of what is read whole: images, tables, texts


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFormat:
    """How a data set's samples are cut; part of its identity, so another format is another data set.

    Attributes:
        frames: video frames a clip, at the centres of as many equal parts of it.
        frame_hz: frames a second of the clip instead, at the centres of their times; None for `frames` a clip.
        keyframes: show the key frame that is, or was last, on screen; no other is decoded.
        frame_size: width and height of a frame, pixels; None keeps its own.
        crop: x, y, width, height of what is kept of the upright frame, as fractions of it; None keeps all.
        audio_hz: rate of the mono PCM16 sound; None leaves sound out.
        imu_hz: rate that inertial tracks are resampled to.
        acc_factor: m/s^2 that one unit of the acceleration columns stands for.
        gyro_factor: rad/s that one unit of the gyroscope columns stands for.
        imu_centre: subtract the recording's mean from every inertial axis, or from those of the gyroscope alone.
        imu_kernel: samples of the median filter that judges inertial spikes; 1 turns it off.
        image_size: width and height of an image, pixels; None keeps its own.
        depth_factor: millimetres that one unit of a depth map stands for.
        depth_size: width and height of a depth map; None keeps its own.
        depth_rotate: bits by which 16-bit depth is rotated right first: 3 for SUN RGB-D.
        depth_farthest: millimetres; what is farther off is set there. None keeps it.
        jpeg_quality: 1 to 100.
        margin_s: context added on both sides of a clip, within the recording.
        window_s: length of the windows of recordings that name no clips; None takes them whole.
        hop_s: distance of those windows' starts; None for `window_s`.
        min_s: shorter clips are left out.
        max_s: longer clips are refused.
    """

    frames: int = 8
    frame_hz: Hertz | None = None
    keyframes: bool = False
    frame_size: tuple[int, int] | None = (64, 64)
    crop: tuple[float, float, float, float] | None = None
    audio_hz: int | None = 16_000
    imu_hz: Hertz = 50.0
    acc_factor: float = 1.0
    gyro_factor: float = 1.0
    imu_centre: bool | Literal["gyro"] = False
    imu_kernel: int = 5
    image_size: tuple[int, int] | None = (64, 64)
    depth_factor: float = 1.0
    depth_size: tuple[int, int] | None = (64, 64)
    depth_rotate: int = 0
    depth_farthest: float | None = None
    jpeg_quality: int = 90
    margin_s: Seconds = 0.0
    window_s: Seconds | None = None
    hop_s: Seconds | None = None
    min_s: Seconds = 0.0
    max_s: Seconds = 120.0

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    @property
    def json(self) -> str:
        """All settings, for the ledger."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ClipFormat:
        """The format that `json` wrote."""
        settings = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(text).items()}
        return cls(**cast(dict[str, Any], settings))


def cut(recording: Recording, clip: Clip, format: ClipFormat, source: Path) -> Sample:
    """One window of `recording` as a sample.

    Args:
        recording: its tracks' paths are relative to `source`.
        clip: seconds from the recording's start.
        format: how to cut.
        source: the data set's folder.

    Raises:
        Unfit: the recording or the window is no good, and why.
    """
    (sample,) = cut_all(replace(recording, clips=(clip,)), format, source)
    return sample


def cut_all(
    recording: Recording,
    format: ClipFormat,
    source: Path,
    *,
    dataset: str = "",
    recording_id: str | None = None,
    quality: Quality | None = None,
    partial: bool = False,
    scratch: Path | None = None,
) -> Iterator[Sample]:
    """The clips of `recording` by start and end, its tracks decoded once, in memory that does not grow with its length.

    Clips of one window become one sample with the labels of all.

    Args:
        recording: its tracks' paths are relative to `source`.
        format: how to cut.
        source: the data set's folder.
        dataset: what the samples say they belong to.
        recording_id: its identity, where that is known.
        quality: filled with what is found of the recording, complete at the end; a sample tells of its own frames.
        partial: clips that the recording ends before are left out, and those it ends in cut short.
        scratch: where members of archives are laid out; None for the system's folder for such things.

    Raises:
        Unfit: the recording is no good, and why; some of that shows only at its end, when samples have been yielded.
    """
    quality = {} if quality is None else quality
    if recording.fault:
        raise Unfit(recording.fault)
    try:
        size = _regular(recording, source)
        recording_id = recording_id or recording.content_id(source)
        with contextlib.ExitStack() as stack:
            deadline = Deadline.of(size)
            laid_out, folder = stack.enter_context(unpacked(recording, source, deadline, scratch))
            signals = _Signals(laid_out, format, folder, quality, deadline, stack, source, partial=partial)
            common = {
                "dataset": dataset,
                "recording": recording_id,
                "name": recording.name,
                "split": recording.split,
                "domain": recording.domain,
                "arrival": recording.arrival,
                "language": recording.language,
                "source": source_path(recording),
            }
            for (start_ms, end_ms), clips in signals.clips:
                sample = signals.cut(clip_key(recording_id, start_ms / 1000, end_ms / 1000), clips[-1])
                labels = dict.fromkeys(label for clip in clips for label in clip.labels or recording.labels)
                sample.meta |= common | {"labels": list(labels)}
                yield sample
            quality |= signals.seen()
            gate(quality)
    except FileNotFoundError as error:
        raise Unfit(f"no such file: {below(error.filename, source)}") from error
    except OSError as error:
        raise Unfit(f"cannot be read: {error.strerror or error}") from error


def source_path(recording: Recording) -> str | None:
    """The path, relative to the data set, of the track that a person would open first."""
    paths = (recording.tracks[m].path for m in MAIN if m in recording.tracks)
    return next((path.as_posix() for path in paths if path), None)


def inside(path: Path, source: Path) -> bool:
    """Whether `path` leads to a place below `source`, links followed."""
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(source), ""))


def below(path: str | Path | None, source: Path) -> str:
    """`path` as people know it: relative to the data set's folder where it lies below it."""
    path = Path(path or "")
    return path.relative_to(source).as_posix() if path.is_relative_to(source) else str(path)


def windows(clips: tuple[Clip, ...], duration_s: Seconds, format: ClipFormat) -> list[Clip]:
    """The clips that are long enough, or, where none are named, the format's windows over the recording.

    A last window is kept when at least half of it lies inside.
    """
    if not clips and format.window_s and duration_s > format.window_s:
        hop = format.hop_s or format.window_s
        starts = np.arange(0.0, max(duration_s - format.window_s / 2, hop), hop)
        clips = tuple(Clip(round(s, 6), round(min(s + format.window_s, duration_s), 6)) for s in starts.tolist())
    clips = clips or (Clip(),)
    if not duration_s:  # an image or a text has no length to judge
        return list(clips)
    ends = [(clip, duration_s if clip.end_s is None else clip.end_s) for clip in clips]
    return [clip for clip, end in ends if end - clip.start_s >= format.min_s or end < clip.start_s]


class _Signals:
    """A recording's tracks, opened, from which windows are cut in order of time."""

    def __init__(
        self,
        recording: Recording,
        format: ClipFormat,
        source: Path,
        quality: Quality,
        deadline: Deadline,
        stack: contextlib.ExitStack,
        home: Path,
        *,
        partial: bool,
    ):
        self.format, self.quality, self._clips = format, quality, recording.clips
        self._shift, self._partial = recording.shift or Shift(), partial
        self._deadline, self._stack = deadline, stack
        self._audio: pyav.Sound | Babbled | None = None
        self._imu = self._image = self._depth = self._text = None
        self._image_size = self._frame_size = (0, 0)
        self._video: pyav.Scan | None = None
        self._stills: list[Path] = []
        tracks, ends = recording.tracks, [0.0]
        if track := tracks.get(Modality.VIDEO):
            sound = Modality.AUDIO not in tracks and not recording.mute
            ends.append(self._open_video(track, source, sound=sound))
        if (track := tracks.get(Modality.AUDIO)) and format.audio_hz:
            found = pyav.scan(_path(track, source), audio_hz=format.audio_hz, video=False, deadline=deadline)
            stack.callback(found.close)
            self._audio = found.audio
            quality |= {**found.quality, **quality}
            ends.append(found.duration_s)
        if track := tracks.get(Modality.IMU):
            with _opened(track, source) as file:
                self._imu, found_imu = imu.read(
                    file,
                    hz=format.imu_hz,
                    rate_hz=track.rate_hz,
                    acc_factor=format.acc_factor,
                    gyro_factor=format.gyro_factor,
                    centre=format.imu_centre,
                    kernel=format.imu_kernel,
                    deadline=deadline,
                )
            quality |= found_imu
            ends.append(len(self._imu) / format.imu_hz)
        if track := tracks.get(Modality.IMAGE):
            data = _read(track, source)
            picture = stills.image(data, _name(track), track.shape)
            if track.shape is None and stills.damaged(data):
                quality["image_errors"] = 1
            picture = stills.fit(
                picture.convert("L" if track.shape and len(track.shape) == 2 else "RGB"), format.image_size
            )
            self._image = stills.png(picture) if track.shape else self._encode(picture)
            self._image_size = picture.size
        if track := tracks.get(Modality.DEPTH):
            self._depth = depth.read(
                _read(track, source),
                _name(track),
                factor=format.depth_factor,
                size=format.depth_size,
                rotate=format.depth_rotate,
                farthest=format.depth_farthest,
            )
        if track := tracks.get(Modality.TEXT):
            self._text = _read(track, source).decode(errors="replace").strip()
        if self._stills and not any(ends):  # nobody says how fast they follow each other
            ends.append(len(self._stills) / STILLS_HZ)
        self.duration_s: Seconds = round(max(ends), 6)
        gate(quality)
        self._apply_shift(home)

        self.clips = sorted(self._plan().items())
        self._film: _Film | None = None
        if self._video is not None or self._stills:
            wanted = [self._instants(*self.window(clip)) for _, clips in self.clips for clip in clips]
            self._film = _Film(np.unique(np.concatenate(wanted)), self._jpegs)

    def window(self, clip: Clip) -> tuple[Seconds, Seconds]:
        """What is cut for `clip`: with its margins, inside the recording."""
        end = self.duration_s if clip.end_s is None else clip.end_s
        if clip.start_s < 0 or end < clip.start_s:
            raise Unfit(f"clip {clip.start_s:g}-{end:g} s ends before it starts, or starts before the recording")
        latest = math.inf if self._partial else self.duration_s + END_SLACK
        if self.duration_s and (clip.start_s >= self.duration_s or end > latest):
            raise Unfit(f"clip {clip.start_s:g}-{end:g} s lies beyond the recording's end at {self.duration_s:.1f} s")
        if end - clip.start_s > self.format.max_s:
            raise Unfit(
                f"clip {clip.start_s:g}-{end:g} s is longer than {self.format.max_s:g} s: "
                "give start and end times, or set window_s in the recipe's format"
            )
        margin = self.format.margin_s
        return max(0.0, round(clip.start_s - margin, 6)), round(min(self.duration_s, end + margin), 6)

    def cut(self, key: str, clip: Clip) -> Sample:
        """The signals of `clip`, which starts no earlier than the one before, and the JSON that describes them."""
        start, end = self.window(clip)
        tracks: dict[str, dict[str, Any]] = {}
        sample = Sample(key, {"key": key, "clip": [clip.start_s, clip.end_s], "start_s": start})
        sample.meta |= {"duration_s": round(end - start, 6), "tracks": tracks, "quality": dict(self.quality)}
        if self._film is not None:
            times = self._instants(start, end)
            sample.frames, damaged = self._film.show(times, since=start - 0.001)  # starts are in order to the ms
            sample.meta["quality"] |= {"video_decoded": len(times), "video_errors": damaged}
            rate = self.format.frame_hz or (round(self.format.frames / (end - start), 4) if end > start else None)
            width, height = self._frame_size
            tracks["video"] = {"rate_hz": rate, "length": len(times), "width": width, "height": height}
        if self._audio is not None:
            sample.audio = _span(self._audio, start, end, self._audio.hz)
            tracks["audio"] = {"rate_hz": self._audio.hz}
        if self._imu is not None:
            sample.imu = _span(self._imu, start, end, self.format.imu_hz)
            tracks["imu"] = {"rate_hz": self.format.imu_hz}
        for name in ("audio", "imu"):  # a track that ends before the window is a missing modality
            signal = getattr(sample, name)
            if signal is not None and not len(signal):
                setattr(sample, name, None)
                del tracks[name]
            elif signal is not None:
                tracks[name]["length"] = len(signal)
        if self._image is not None:
            sample.image = self._image
            tracks["image"] = {"width": self._image_size[0], "height": self._image_size[1]}
        if self._depth is not None:
            sample.depth = self._depth
            tracks["depth"] = {"width": self._depth.shape[1], "height": self._depth.shape[0]}
        if (text := clip.text or self._text) and Modality.TEXT not in self._shift.drop:
            sample.text = text
            tracks["text"] = {"length": len(text)}
        if not sample.modalities:
            raise Unfit(f"no track has anything between {start:g} and {end:g} s")
        return sample

    def seen(self) -> Quality:
        """How the frames of all clips came out."""
        return {} if self._film is None else self._film.quality

    def _apply_shift(self, source: Path) -> None:
        """Put the signals through the shift, whose voices lie below `source`; a voice that is no good is left out."""
        voices = []
        for track in self._shift.babble if isinstance(self._audio, pyav.Sound) else ():
            self._deadline.check()
            with contextlib.suppress(Unfit, OSError):
                one = Recording("", {Modality.AUDIO: track})
                laid_out, folder = self._stack.enter_context(unpacked(one, source, self._deadline))
                path = _path(laid_out.tracks[Modality.AUDIO], folder)
                found = pyav.scan(path, audio_hz=self.format.audio_hz, video=False, deadline=self._deadline)
                self._stack.callback(found.close)
                voices += [found.audio] if found.audio else []
        if isinstance(self._audio, pyav.Sound) and voices:
            self._audio = Babbled(self._audio, voices, self._shift.snr_db)
        for modality in self._shift.drop:
            if modality is Modality.VIDEO:
                self._video, self._stills = None, []
            else:
                setattr(self, f"_{modality}", None)

    def _plan(self) -> dict[tuple[int, int], list[Clip]]:
        """The clips to cut by start and end in milliseconds, which is what tells samples apart."""
        plan: dict[tuple[int, int], list[Clip]] = {}
        clips = windows(self._clips, self.duration_s, self.format)
        late = self.duration_s if self._partial and self.duration_s else math.inf
        for clip in (clip for clip in clips if clip.start_s < late):
            _, end = self.window(clip)
            end = end if clip.end_s is None else clip.end_s
            plan.setdefault((round(1000 * clip.start_s), round(1000 * end)), []).append(clip)
        if not plan:
            raise Unfit(f"no clip of at least {self.format.min_s:g} s; the recording lasts {self.duration_s:.2f} s")
        return plan

    def _instants(self, start: Seconds, end: Seconds) -> NDArray[np.float64]:
        """When the frames of a window are on screen."""
        hz, count, length = self.format.frame_hz, self.format.frames, end - start
        if hz and length * hz > 0.5:
            return np.round(start + (np.arange(math.ceil(length * hz - 0.5 - 1e-6)) + 0.5) / hz, 6)
        count = 1 if hz else count
        return np.round(start + (np.arange(count) + 0.5) * length / count, 6)

    def _open_video(self, track: Track, source: Path, *, sound: bool) -> Seconds:
        path = _path(track, source)
        if path.is_dir():
            self._stills = stills.listing(path)
            self.quality["video_frames"] = len(self._stills)
            return len(self._stills) / track.rate_hz if track.rate_hz else 0.0
        found = pyav.scan(path, audio_hz=self.format.audio_hz if sound else None, deadline=self._deadline)
        self._stack.callback(found.close)
        self._video = found.only_key_frames() if self.format.keyframes else found
        self._audio = found.audio
        self.quality |= found.quality
        return found.duration_s

    def _jpegs(self, targets: np.ndarray) -> Iterator[tuple[range, bytes]]:
        """The JPEGs shown at `targets`, each with the positions it serves; damaged ones are left out."""
        for places, picture in self._pictures(targets):
            self._deadline.check()
            self._frame_size = picture.shape[1], picture.shape[0]
            yield places, self._encode(veiled(picture, self._shift))

    def _pictures(self, targets: np.ndarray) -> Iterator[tuple[range, pyav.Picture]]:
        look: Any = {"size": self.format.frame_size, "crop": self.format.crop}
        if self._video is None:
            step = (self.duration_s or 1.0) / len(self._stills)
            shown, first = np.unique(pyav.on_screen(np.arange(len(self._stills)) * step, targets), return_index=True)
            for index, start, stop in zip(shown, first, [*first[1:], len(targets)], strict=True):
                path = self._stills[index]
                picture = stills.image(path.read_bytes(), path.name).convert("RGB")
                yield range(start, stop), np.asarray(stills.fit(picture, **look))
            return
        look["deadline"], served = self._deadline, 0
        if not self._video.needs_graph:
            try:
                for places, frame in pyav.frames(self._video, targets, **look):
                    yield places, frame
                    served = places.stop
                return
            except pyav.Interlaced:
                self._video = replace(self._video, interlaced=True)
        for places, frame in ffmpeg.frames(self._video, targets[served:], **look):
            yield range(served + places.start, served + places.stop), frame

    def _encode(self, picture: Image.Image | pyav.Picture) -> bytes:
        return simplejpeg.encode_jpeg(np.ascontiguousarray(picture), self.format.jpeg_quality, colorspace="RGB")


class _Film:
    """A recording's JPEGs in order of time: decoded when a clip asks, let go when no later one can."""

    def __init__(
        self, targets: NDArray[np.float64], jpegs: Callable[[NDArray[np.float64]], Iterator[tuple[range, bytes]]]
    ):
        self._targets, self._jpegs = targets, jpegs(targets)
        self._held: dict[int, bytes] = {}
        self._good, self._reached = 0, -1

    @property
    def quality(self) -> Quality:
        """Frames asked for so far, and how many of them could not be decoded."""
        return {"video_decoded": len(self._targets), "video_errors": len(self._targets) - self._good}

    def show(self, times: NDArray[np.float64], *, since: Seconds) -> tuple[list[bytes], int]:
        """The frames on screen at `times`, damaged ones replaced by the nearest good one, and how many were.

        Nobody will ask for times before `since` again.
        """
        places = np.searchsorted(self._targets, times).tolist()
        for where, jpeg in self._jpegs if self._reached < places[-1] else ():
            self._held |= dict.fromkeys(where, jpeg)
            self._good, self._reached = self._good + len(where), max(self._reached, where.stop - 1)
            if self._reached >= places[-1]:
                break
        if not self._held:
            gate(self.quality)
        first = int(np.searchsorted(self._targets, since))
        past = [place for place in self._held if place < first]
        for place in past[:-1]:  # the last one may stand in for the first of the next clip
            del self._held[place]
        shown = [p if p in self._held else min(self._held, key=lambda known: abs(known - p)) for p in places]
        return [self._held[p] for p in shown], sum(a != b for a, b in zip(shown, places, strict=True))


def _span(signal: Any, start: Seconds, end: Seconds, hz: Hertz) -> NDArray[Any]:
    span: NDArray[Any] = signal[round(start * hz) : round(end * hz)]
    return span


def _regular(recording: Recording, source: Path) -> int:
    """The bytes of the recording's files, none of which may be a device, a pipe or a socket: opening one can hang."""
    size = 0
    for path in (source / track.path for track in recording.tracks.values() if track.path):
        for file in path.iterdir() if path.is_dir() else [path]:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode) and not (file is not path and stat.S_ISDIR(status.st_mode)):
                raise Unfit(f"{below(file, source)} is no regular file")
            size += status.st_size
    return size


def _path(track: Track, source: Path) -> Path:
    assert track.path is not None
    return source / track.path


def _read(track: Track, source: Path) -> bytes:
    if track.path and track.length is None and (source / track.path).stat().st_size > MAX_BYTES:
        raise Unfit(f"{track.path.name} is larger than {MAX_BYTES >> 20} MiB")
    return track.read(source)


def _opened(track: Track, source: Path) -> BinaryIO:
    whole = track.path is not None and not track.offset and track.length is None
    return track.open(source) if whole else io.BytesIO(_read(track, source))


def _name(track: Track) -> str:
    return track.path.name if track.path else "the inline track"
