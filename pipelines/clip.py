"""From a recording's window to a sample: the one place that cuts, for ingest and for predict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import simplejpeg
from PIL import Image

from pipelines.media import depth, ffmpeg, imu, pyav, stills
from pipelines.quality import Quality, Unfit, gate
from store.types import Clip, Hertz, Modality, Recording, Sample, Seconds, Track, clip_key

MAIN = (Modality.VIDEO, Modality.AUDIO, Modality.IMAGE, Modality.IMU, Modality.DEPTH, Modality.TEXT)
END_SLACK: Seconds = 0.5
MAX_BYTES = 256 << 20  # of what is read whole: images, tables, texts


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipFormat:
    """How a data set's samples are cut; part of its identity, so another format is another data set.

    Attributes:
        frames: video frames a clip, at the centres of as many equal parts of it.
        frame_size: width and height of a frame, pixels.
        crop: x, y, width, height of what is kept of the upright frame, as fractions of it; None keeps all.
        audio_hz: rate of the mono PCM16 sound.
        imu_hz: rate that inertial tracks are resampled to.
        acc_factor: m/s^2 that one unit of the acceleration columns stands for.
        gyro_factor: rad/s that one unit of the gyroscope columns stands for.
        imu_centre: subtract the recording's mean from every inertial axis.
        imu_kernel: samples of the median filter that judges inertial spikes; 1 turns it off.
        image_size: width and height of an image, pixels; None keeps its own.
        depth_factor: millimetres that one unit of a depth map stands for.
        depth_size: width and height of a depth map; None keeps its own.
        jpeg_quality: 1 to 100.
        margin_s: context added on both sides of a clip, within the recording.
        window_s: length of the windows of recordings that name no clips; None takes them whole.
        hop_s: distance of those windows' starts; None for `window_s`.
        min_s: shorter clips are left out.
        max_s: longer clips are refused.
    """

    frames: int = 8
    frame_size: tuple[int, int] = (64, 64)
    crop: tuple[float, float, float, float] | None = None
    audio_hz: int = 16_000
    imu_hz: Hertz = 50.0
    acc_factor: float = 1.0
    gyro_factor: float = 1.0
    imu_centre: bool = False
    imu_kernel: int = 5
    image_size: tuple[int, int] | None = (64, 64)
    depth_factor: float = 1.0
    depth_size: tuple[int, int] | None = (64, 64)
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

    @property
    def digest(self) -> str:
        """12 hexadecimal digits that change with any setting."""
        return hashlib.sha256(self.json.encode()).hexdigest()[:12]


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
    return next(cut_all(replace(recording, clips=(clip,)), format, source))


def cut_all(
    recording: Recording,
    format: ClipFormat,
    source: Path,
    *,
    dataset: str = "",
    recording_id: str | None = None,
    quality: Quality | None = None,
) -> Iterator[Sample]:
    """All clips of `recording`, its tracks decoded once; clips of one window become one sample with both's labels.

    Raises:
        Unfit: the recording is no good, and why.
    """
    try:
        recording_id = recording_id or recording.content_id(source)
        signals = _Signals(recording, format, source)
    except FileNotFoundError as error:
        raise Unfit(f"no such file: {below(error.filename, source)}") from error
    except OSError as error:
        raise Unfit(f"cannot be read: {error.strerror or error}") from error
    samples: dict[str, Sample] = {}
    for clip in windows(recording.clips, signals.duration_s, format):
        start, end = signals.window(clip)
        key = clip_key(recording_id, clip.start_s, end if clip.end_s is None else clip.end_s)
        labels = clip.labels or recording.labels
        if key in samples:
            labels = (*samples[key].meta["labels"], *labels)
        sample = signals.cut(key, clip, start, end)
        sample.meta |= {
            "key": key,
            "dataset": dataset,
            "recording": recording_id,
            "name": recording.name,
            "clip": [clip.start_s, clip.end_s],
            "split": recording.split,
            "labels": list(dict.fromkeys(labels)),
            "domain": recording.domain,
            "arrival": recording.arrival,
            "language": recording.language,
            "source": source_path(recording),
            "quality": signals.quality,
        }
        if not sample.modalities:
            raise Unfit(f"no track has anything between {start:g} and {end:g} s")
        samples[key] = sample
    if not samples:
        raise Unfit(f"no clip of at least {format.min_s:g} s; the recording lasts {signals.duration_s:.2f} s")
    if quality is not None:
        quality |= signals.quality
    yield from sorted(samples.values(), key=lambda sample: sample.meta["start_s"])


def source_path(recording: Recording) -> str | None:
    """The path, relative to the data set, of the track that a person would open first."""
    paths = (recording.tracks[m].path for m in MAIN if m in recording.tracks)
    return next((path.as_posix() for path in paths if path), None)


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
    """A recording's decoded tracks, from which windows are cut."""

    def __init__(self, recording: Recording, format: ClipFormat, source: Path):
        self.format, self.quality = format, Quality()
        self._audio = self._imu = self._image = self._depth = self._text = None
        self._image_size = (0, 0)
        self._video: pyav.Scan | None = None
        self._stills: list[Path] = []
        tracks, ends = recording.tracks, [0.0]
        if track := tracks.get(Modality.VIDEO):
            ends.append(self._open_video(track, source, sound=Modality.AUDIO not in tracks))
        if track := tracks.get(Modality.AUDIO):
            found = pyav.scan(_path(track, source), audio_hz=format.audio_hz, video=False)
            self._audio, self.quality = found.audio, {**found.quality, **self.quality}
            ends.append(found.duration_s)
        if track := tracks.get(Modality.IMU):
            self._imu, quality = imu.read(
                _read(track, source),
                hz=format.imu_hz,
                rate_hz=track.rate_hz,
                acc_factor=format.acc_factor,
                gyro_factor=format.gyro_factor,
                centre=format.imu_centre,
                kernel=format.imu_kernel,
            )
            self.quality |= quality
            ends.append(len(self._imu) / format.imu_hz)
        if track := tracks.get(Modality.IMAGE):
            picture = stills.image(_read(track, source), _name(track), track.shape)
            picture = stills.fit(
                picture.convert("L" if track.shape and len(track.shape) == 2 else "RGB"), format.image_size
            )
            self._image, self._image_size = self._encode(picture, lossless=track.shape is not None), picture.size
        if track := tracks.get(Modality.DEPTH):
            self._depth = depth.read(
                _read(track, source), _name(track), factor=format.depth_factor, size=format.depth_size
            )
        if track := tracks.get(Modality.TEXT):
            self._text = _read(track, source).decode(errors="replace").strip()
        self.duration_s: Seconds = round(max(ends), 6)
        gate(self.quality)
        found_clips = windows(recording.clips, self.duration_s, format)
        self._frames = self._decode_frames([self.window(clip) for clip in found_clips])

    def window(self, clip: Clip) -> tuple[Seconds, Seconds]:
        """What is cut for `clip`: with its margins, inside the recording."""
        end = self.duration_s if clip.end_s is None else clip.end_s
        if clip.start_s < 0 or end < clip.start_s:
            raise Unfit(f"clip {clip.start_s:g}-{end:g} s ends before it starts, or starts before the recording")
        if self.duration_s and (clip.start_s >= self.duration_s or end > self.duration_s + END_SLACK):
            raise Unfit(f"clip {clip.start_s:g}-{end:g} s lies beyond the recording's end at {self.duration_s:.1f} s")
        if end - clip.start_s > self.format.max_s:
            raise Unfit(
                f"clip {clip.start_s:g}-{end:g} s is longer than {self.format.max_s:g} s: "
                "give start and end times, or set window_s in the recipe's format"
            )
        margin = self.format.margin_s
        return max(0.0, round(clip.start_s - margin, 6)), round(min(self.duration_s, end + margin), 6)

    def cut(self, key: str, clip: Clip, start: Seconds, end: Seconds) -> Sample:
        """The signals between `start` and `end`, and the part of the JSON that describes them."""
        tracks: dict[str, dict[str, Any]] = {}
        sample = Sample(key, {"start_s": start, "duration_s": round(end - start, 6), "tracks": tracks})
        if self._frames:
            sample.frames = [self._frames[t] for t in _centres(start, end, self.format.frames)]
            rate = round(self.format.frames / (end - start), 4) if end > start else None
            width, height = self.format.frame_size
            tracks["video"] = {"rate_hz": rate, "length": len(sample.frames), "width": width, "height": height}
        if self._audio is not None:
            sample.audio = _span(self._audio, start, end, self.format.audio_hz)
            tracks["audio"] = {"rate_hz": self.format.audio_hz}
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
        if text := clip.text or self._text:
            sample.text = text
            tracks["text"] = {"length": len(text)}
        return sample

    def _open_video(self, track: Track, source: Path, *, sound: bool) -> Seconds:
        path = _path(track, source)
        if path.is_dir():
            self._stills = stills.listing(path)
            self.quality["video_frames"] = len(self._stills)
            return len(self._stills) / track.rate_hz if track.rate_hz else 0.0
        self._video = pyav.scan(path, audio_hz=self.format.audio_hz if sound else None)
        self._audio, self.quality = self._video.audio, self._video.quality
        return self._video.duration_s

    def _decode_frames(self, spans: list[tuple[Seconds, Seconds]]) -> dict[Seconds, bytes]:
        """The JPEG shown at every time that a clip wants one."""
        if not spans or (self._video is None and not self._stills):
            return {}
        targets = np.array(sorted({t for start, end in spans for t in _centres(start, end, self.format.frames)}))
        encoded: dict[int, bytes] = {}
        for places, picture in self._pictures(targets):
            encoded |= dict.fromkeys(places, self._encode(picture))
        damaged = len(targets) - len(encoded)
        self.quality |= {"video_decoded": len(targets), "video_errors": damaged}
        gate(self.quality)
        known = np.array(sorted(encoded))
        nearest = known[np.abs(known[None] - np.arange(len(targets))[:, None]).argmin(axis=1)] if damaged else known
        return {float(t): encoded[int(place)] for t, place in zip(targets, nearest, strict=True)}

    def _pictures(self, targets: np.ndarray) -> Iterator[tuple[list[int], Image.Image]]:
        size, crop = self.format.frame_size, self.format.crop
        if self._video is None:
            step = (self.duration_s or 1.0) / len(self._stills)
            shown = pyav.on_screen(np.arange(len(self._stills)) * step, targets)
            for index in np.unique(shown):
                path = self._stills[index]
                picture = stills.image(path.read_bytes(), path.name).convert("RGB")
                yield np.flatnonzero(shown == index).tolist(), stills.fit(picture, size, crop)
        elif self._video.needs_graph:
            yield from ffmpeg.frames(self._video, targets, size=size, crop=crop)
        else:
            for places, picture in pyav.frames(self._video, targets):
                yield places, stills.fit(picture, size, crop)

    def _encode(self, picture: Image.Image, *, lossless: bool = False) -> bytes:
        if lossless:
            return stills.png(picture)
        return simplejpeg.encode_jpeg(np.ascontiguousarray(picture), self.format.jpeg_quality, colorspace="RGB")


def _centres(start: Seconds, end: Seconds, count: int) -> list[Seconds]:
    return [round(start + (i + 0.5) * (end - start) / count, 6) for i in range(count)]


def _span(signal: np.ndarray, start: Seconds, end: Seconds, hz: Hertz) -> np.ndarray:
    return signal[round(start * hz) : round(end * hz)]


def _path(track: Track, source: Path) -> Path:
    assert track.path is not None
    return source / track.path


def _read(track: Track, source: Path) -> bytes:
    if track.path and track.length is None and (source / track.path).stat().st_size > MAX_BYTES:
        raise Unfit(f"{track.path.name} is larger than {MAX_BYTES >> 20} MiB")
    return track.read(source)


def _name(track: Track) -> str:
    return track.path.name if track.path else "the inline track"
