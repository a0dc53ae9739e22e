"""Broken and hostile input: how each kind is made, and what must happen to it. `pipelines/FAULTS.md` is its table.

A case writes its files into a folder of its own and yields the manifest's rows that name them. All cases lie in one
source, between good neighbours, and are ingested in one run.
"""

from __future__ import annotations

import binascii
import csv
import gzip
import io
import itertools
import os
import pickle
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from store.types import Sample

FILES = ("video", "audio", "imu", "image", "depth")
COLUMNS = (*FILES, "text", "label", "domain", "split", "start_s", "end_s", "imu_rate_hz")

Row = dict[str, str] | tuple[bytes, str | None]  # cells, or a line as it is and the recording's name if it has one
Check = Callable[[list[Sample]], bool]


@dataclass(frozen=True)
class Fault:
    """One kind of input.

    Attributes:
        name: what the table calls it.
        make: writes the files into a folder and yields rows; paths in them are relative to that folder.
        verdict: `refused`, every recording with `says` in its reason; `good`, every recording with `holds` true of its
            samples; `caught`, refused, or kept with the damage in its quality columns or in no sample.
        says: what the reason holds, any of several by `|`.
        least: of a caught kind, the share that must be caught; the rest cannot be told from whole files.
    """

    name: str
    make: Callable[[Path], Iterator[Row]]
    verdict: str
    says: str = ""
    holds: Check = len
    least: float = 1.0


FAULTS: dict[str, Fault] = {}


def refused(says: str) -> Callable[[Callable], Callable]:
    return lambda make: _register(make, "refused", says=says)


def good(holds: Check = len) -> Callable[[Callable], Callable]:
    return lambda make: _register(make, "good", holds=holds)


def _register(make: Callable, verdict: str, **more) -> Callable:
    name = make.__name__.replace("_", " ")
    FAULTS[name] = Fault(name, make, verdict, **more)
    return make


@dataclass
class Made:
    """A source with every case in it.

    Attributes:
        names: the recordings of each case.
        whole: of a caught kind, the undamaged recording that its damaged ones are compared with.
        neighbours: names of the good ones.
    """

    source: Path
    names: dict[str, list[str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)
    neighbours: list[str] = field(default_factory=list)


def make_all(source: Path) -> Made:
    """Write all cases and their good neighbours below `source`, with one manifest."""
    made, number = Made(source), 1
    with open(source / "manifest.csv", "wb") as manifest:
        manifest.write((",".join(COLUMNS) + "\n").encode())

        def write(row: Row, folder: str) -> str:
            nonlocal number
            number += 1
            if isinstance(row, tuple):
                manifest.write(row[0] + b"\n")
                return row[1] or f"row {number}"
            row = {k: f"{folder}/{v}" if k in FILES else v for k, v in row.items()}
            line = io.StringIO()
            csv.writer(line, lineterminator="\n").writerow([row.get(column, "") for column in COLUMNS])
            manifest.write(line.getvalue().encode())
            return "+".join(row[column] for column in FILES if column in row)

        for place, fault in enumerate(FAULTS.values()):
            folder = fault.name.replace(" ", "-")
            (source / folder).mkdir()
            made.names[fault.name] = list(dict.fromkeys(write(row, folder) for row in fault.make(source / folder)))
            if fault.verdict == "caught":
                made.whole[fault.name] = made.names[fault.name].pop(0)
            (source / "good").mkdir(exist_ok=True)
            made.neighbours += [write(row, "good") for row in _neighbour(source / "good", place)]
    return made


def _neighbour(folder: Path, place: int) -> Iterator[dict[str, str]]:
    name, random_ = f"good{place}", np.random.default_rng(1000 + place)
    match place % 5:
        case 0:
            yield {"audio": sound(folder / f"{name}.wav", seed=1000 + place).name, "label": "good"}
        case 1:
            yield {"image": picture(folder / f"{name}.jpg", seed=1000 + place).name, "label": "good"}
        case 2:
            (folder / f"{name}.csv").write_bytes(motion(seed=1000 + place))
            yield {"imu": f"{name}.csv", "label": "good"}
        case 3:
            np.save(folder / f"{name}.npy", random_.integers(0, 5000, (24, 32), np.uint16))
            yield {"depth": f"{name}.npy", "label": "good"}
        case _:
            yield {"video": video(folder / f"{name}.mp4", seed=1000 + place).name, "label": "good"}


# --- Whole files


def film(count: int = 30, size: tuple[int, int] = (64, 48), seed: int = 0) -> Iterator[np.ndarray]:
    """Pictures with detail everywhere that moves, so that a wrong bit shows."""
    big = np.random.default_rng(seed).integers(0, 255, (size[1] // 4 + 2, size[0] // 4 + count // 4 + 4, 3), np.uint8)
    wide = np.asarray(Image.fromarray(big).resize((big.shape[1] * 4, big.shape[0] * 4), Image.Resampling.BICUBIC))
    return (np.ascontiguousarray(wide[: size[1], i : i + size[0]]) for i in range(count))


def video(
    path: Path,
    *,
    frames: int = 30,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    sound_hz: int | None = 16_000,
    pts: Callable[[int], int] = int,
    keep: Callable[[int, av.Packet], bool] = lambda number, packet: True,
    seed: int = 0,
    gop: int = 10,
    options: dict[str, str] | None = None,
) -> Path:
    """A film at 25 fps with sound; the container follows the suffix."""
    with av.open(f"file:{path}", "w", options=options or {}) as container:
        quality = {"crf": "20", "preset": "veryfast", "threads": "1"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=25, options=quality)
        stream.width, stream.height, stream.gop_size = *size, gop
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "bgr0" if codec == "ffv1" else "yuvj420p"
        audio = container.add_stream("aac", rate=sound_hz, layout="mono") if sound_hz else None
        number = itertools.count()
        container.start_encoding()
        for index, pixels in enumerate(film(frames, size, seed)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = pts(index), Fraction(1, 25)
            container.mux([p for p in stream.encode(frame) if keep(next(number), p)])
        container.mux([p for p in stream.encode(None) if keep(next(number), p)])
        if audio is not None:
            wave = 0.2 * np.random.default_rng(seed).standard_normal(round(frames / 25 * sound_hz)).astype(np.float32)
            for start in range(0, len(wave), 1024):
                chunk = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
                chunk.sample_rate, chunk.time_base = sound_hz, Fraction(1, sound_hz)
                chunk.pts = start + round(pts(0) / 25 * sound_hz)
                container.mux(audio.encode(chunk))
            container.mux(audio.encode(None))
    return path


def sound(path: Path, *, seconds: float = 1.0, hz: int = 8000, channels: int = 1, seed: int = 0) -> Path:
    wave = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * hz), channels))
    soundfile.write(path, wave, hz, subtype=None if path.suffix == ".ogg" else "PCM_16")
    return path


def picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
    Image.fromarray(next(film(1, size, seed))).save(path)
    return path


def motion(rows: int = 200, *, seed: int = 0, hz: float = 50.0, header: bool = True, comma: str = ",") -> bytes:
    values = np.random.default_rng(seed).normal(0, 1, (rows, 6)).round(4)
    lines = [comma.join(map(str, [f"{i / hz:.3f}", *row])) for i, row in enumerate(values.tolist())]
    names = comma.join(("time", "acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"))
    return ("\n".join([names, *lines] if header else lines) + "\n").encode()


def wav(samples: bytes, *, hz: int = 8000, bits: int = 16, kind: int = 1, claim: int | None = None) -> bytes:
    """A mono WAV around `samples`; `claim` is what its header says of their length."""
    claim = len(samples) if claim is None else claim
    head = struct.pack("<HHIIHH", kind, 1, hz, hz * bits // 8 & 0xFFFFFFFF, bits // 8, bits)
    riff = min(36 + claim, 0xFFFFFFFF)
    return (
        b"RIFF"
        + struct.pack("<I", riff)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + head
        + b"data"
        + struct.pack("<I", claim)
        + samples
    )


def png(width: int, height: int) -> bytes:
    """A black one-bit picture: thousands of times smaller than its pixels."""
    packer, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    data = b"".join(packer.compress(row * min(256, height - y)) for y in range(0, height, 256)) + packer.flush()
    chunks = ((b"IHDR", struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", binascii.crc32(kind + body))
        for kind, body in chunks
    )


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


# --- Cut off and flipped

WHOLE: dict[str, tuple[str, Callable[..., Path]]] = {
    "mp4": ("video", lambda path, **more: video(path, options={"movflags": "+faststart"}, **more)),
    "mp4 with its index last": ("video", video),
    "mkv": ("video", video),
    "wav": ("audio", sound),
    "flac": ("audio", sound),
    "ogg": ("audio", sound),
    "jpg": ("image", picture),
    "png": ("image", picture),
    "csv": ("imu", lambda path: path.write_bytes(motion()) and path),
}
CUT = {
    "mp4": "cut off|damaged|no frame|not a media file|ends",
    "mp4 with its index last": "cut off",
    "mkv": "cut off|damaged|no frame|not a media file|ends",
    "wav": "cut off|not a media file|no audio",
    "flac": "cut off|not a media file|damaged|no sound",
    "ogg": "cut off|not a media file|damaged|no sound",
    "jpg": "damaged",
    "png": "damaged",
    "csv": "cut off|fewer than 2 rows|no row|no IMU column",
}
HEADER = 64  # bytes


def _truncated(kind: str) -> Callable[[Path], Iterator[Row]]:
    def make(folder: Path) -> Iterator[Row]:
        column, write = WHOLE[kind]
        whole = write(folder / f"whole.{kind.split()[0]}")
        data = whole.read_bytes()
        for tenth in range(1, 10):
            cut = whole.with_stem(f"cut{tenth}")
            end = len(data) * tenth // 10
            # A table that ends with a row, or in its last number, cannot be told from a shorter one.
            cut.write_bytes(data[: end if kind != "csv" else data.rindex(b",", 0, end)])
            yield {column: cut.name}

    return make


def _flipped(kind: str, *, body: bool) -> Callable[[Path], Iterator[Row]]:
    def make(folder: Path) -> Iterator[Row]:
        column, write = WHOLE[kind]
        whole = write(folder / f"whole.{kind}", seed=1 + body)
        yield {column: whole.name}
        data = whole.read_bytes()
        # Of an mp4 the body is what its index points at: media, not index.
        first = data.index(b"mdat") + 4 if kind == "mp4" else HEADER
        for seed in range(24 if body else 12):
            place = random.Random(seed).randrange(first if body else 0, len(data) if body else HEADER)
            flipped = bytearray(data)
            flipped[place] ^= 1 << seed % 8
            path = whole.with_stem(f"flip{seed}")
            path.write_bytes(flipped)
            yield {column: path.name}

    return make


for _kind in WHOLE:
    _name = f"{_kind} cut off at every tenth"
    FAULTS[_name] = Fault(_name, _truncated(_kind), "refused", says=CUT[_kind])
# The share of effective flips that shows anywhere: PCM has no checksum, JPEG, h264 and AAC next to none.
for _kind, _head, _body in (
    ("mp4", 1.0, 0.2),
    ("mkv", 1.0, 0.2),
    ("wav", 0.3, 0.0),
    ("flac", 1.0, 1.0),
    ("ogg", 1.0, 1.0),
    ("jpg", 0.1, 0.3),
    ("png", 1.0, 1.0),
):
    for _part, _least in (("header", _head), ("body", _body)):
        _name = f"{_kind} with a bit flipped in its {_part}"
        FAULTS[_name] = Fault(_name, _flipped(_kind, body=_part == "body"), "caught", least=_least)


# --- Nothing in it, or too much


@refused("the file is empty")
def empty_files(folder):
    for column, suffix in zip(FILES, ("mp4", "wav", "csv", "png", "npy"), strict=True):
        (folder / f"empty.{suffix}").touch()
        yield {column: f"empty.{suffix}"}


@refused("no frame|no sound|no track has anything|no video track|not a media file|cut off")
def no_duration(folder):
    (folder / "none.wav").write_bytes(wav(b""))
    yield {"audio": "none.wav"}
    yield {"video": video(folder / "none.mp4", keep=lambda *_: False, sound_hz=None).name}
    yield {"video": video(folder / "none.mkv", keep=lambda *_: False, sound_hz=None).name}


@good(lambda samples: len(samples[0].frames) == 8)
def one_frame(folder):
    yield {"video": video(folder / "one.mp4", frames=1, sound_hz=None).name}
    yield {"video": video(folder / "one.mkv", frames=1, sound_hz=None, seed=1).name}


@good()
def a_hundred_thousand_by_two_pixels(folder):
    (folder / "thin.png").write_bytes(png(100_000, 2))
    yield {"image": "thin.png"}
    (folder / "tall.png").write_bytes(png(2, 100_000))
    yield {"image": "tall.png"}


@refused("more than 100 million pixels")
def picture_bombs(folder):
    (folder / "bomb.png").write_bytes(png(30_000, 30_000))
    yield {"image": "bomb.png"}
    (folder / "bomb.gif").write_bytes(
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;"
    )
    yield {"image": "bomb.gif"}


@refused("million pixels|not a media file|no frame")
def a_film_of_a_billion_pixels(folder):
    (folder / "bomb.gif").write_bytes(
        b"GIF89a\xff\xff\xff\xff\x80\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;;"
    )
    yield {"video": "bomb.gif"}


@refused("unpacks to more than")
def gzip_bomb(folder):
    (folder / "bomb.csv.gz").write_bytes(gzip.compress(bytes(64 << 20)) * 20)
    yield {"imu": "bomb.csv.gz"}


@refused("unpacks? to")
def zip_bomb(folder):
    archive(folder / "bomb.zip", {"bomb.csv": bytes(300 << 20)})
    yield {"imu": "bomb.zip/bomb.csv"}


@refused("longer than")
def sound_bomb(folder):
    with soundfile.SoundFile(folder / "hour.flac", "w", 8000, 1, "PCM_16") as file:
        for _ in range(60):
            file.write(np.zeros(60 * 8000, np.int16))
    yield {"audio": "hour.flac"}


# --- What is no plain file


@refused("leads out of the data set's folder")
def links_out_of_the_source(folder):
    sound(folder.parent.parent / "outside.wav", seed=77)
    (folder / "link.wav").symlink_to("../../outside.wav")
    yield {"audio": "link.wav"}
    (folder / "passwd.csv").symlink_to("/etc/passwd")
    yield {"imu": "passwd.csv"}
    yield {"audio": "../../outside.wav"}
    (folder / "stills").mkdir()
    picture(folder.parent.parent / "outside.png", seed=77)
    (folder / "stills" / "1.png").symlink_to("../../../outside.png")
    yield {"video": "stills"}


@refused("cannot be read|leads out")
def links_that_loop(folder):
    (folder / "self.wav").symlink_to("self.wav")
    yield {"audio": "self.wav"}
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    yield {"video": "a"}


@refused("no regular file|not a regular file|leads out")
def devices_pipes_and_sockets(folder):
    (folder / "zero.wav").symlink_to("/dev/zero")
    yield {"audio": "zero.wav"}
    os.mkfifo(folder / "pipe.mp4")
    yield {"video": "pipe.mp4"}
    here = os.open(".", os.O_RDONLY)
    os.chdir(folder)  # a socket's whole path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.wav")
    os.fchdir(here)
    os.close(here)
    yield {"audio": "socket.wav"}


@refused("no image in|not a regular file|no regular file|is a folder|Is a directory")
def folders_called_files(folder):
    for column, name in (("video", "x.mp4"), ("audio", "x.wav"), ("image", "x.png"), ("imu", "x.csv")):
        (folder / name).mkdir()
        (folder / name / "note.txt").write_text(name)
        yield {column: name}


@good(lambda samples: len(samples[0].frames) == 8)
def folders_of_stills_with_a_loop_and_a_pipe_below(folder):
    for name in ("loop", "deep"):
        (folder / name).mkdir()
        for number in range(3):
            picture(folder / name / f"{number}.png", seed=number + len(name) * (name == "deep"))
    (folder / "loop" / "again").symlink_to(".")
    (folder / "loop" / "more").symlink_to(".")
    (folder / "deep" / "er").mkdir()
    os.mkfifo(folder / "deep" / "er" / "pipe.png")
    yield {"video": "loop"}
    yield {"video": "deep"}


@refused("cannot be read")
def files_without_permission(folder):
    sound(folder / "a.wav", seed=90).chmod(0)
    if os.geteuid():  # root reads all the same
        yield {"audio": "a.wav"}


# --- Names

NAMES = (
    "two\nlines.wav",
    "caf\u00e9.wav",
    "cafe\u0301.wav",
    "\U0001f415\u200d\U0001f9ba.wav",
    "\u202e\u05e9\u05dc\u05d5\u05dd.wav",
    "-i.wav",
    "--.wav",
    'it\'s "so".wav',
    "http:__x:80.wav",
    "%03d.wav",
    "a;b|c,d`$(e)&.wav",
    " spaced .x.wav",
    "x" * 251 + ".wav",
)


@good()
def odd_names(folder):
    for seed, name in enumerate(NAMES):
        yield {"audio": sound(folder / name, seed=200 + seed).name}
    yield {"video": video(folder / "file:-%d 'x'\n.mp4", seed=200).name}


@refused("not UTF-8")
def rows_in_another_encoding(folder):
    yield b",,,caf\xe9.png,,,,,,,,", r"caf\xe9.png"
    yield b",,,,,un texte fran\xe7ais,,,,,,", None


@refused("no such file")
def absent_files(folder):
    yield {"video": "absent.mp4"}
    yield {"audio": "\x01.wav"}


# --- Archives


@good()
def zip_members_that_lead_out(folder):
    names = ("../../slip.wav", "/slip.wav", "a/../../../slip2.wav", "C:\\slip.wav")
    archive(folder / "slip.zip", {name: sound_bytes(300 + i) for i, name in enumerate(names)})
    for name in names:
        yield {"audio": f"slip.zip/{name}"}


def sound_bytes(seed: int) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, 0.1 * np.random.default_rng(seed).standard_normal(4000), 8000, format="WAV", subtype="PCM_16")
    return data.getvalue()


@refused("cannot be unpacked|encrypted|password")
def encrypted_zip(folder):
    path = archive(folder / "secret.zip", {"a.wav": sound_bytes(310)})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    yield {"audio": "secret.zip/a.wav"}


@refused("damaged|no such|Bad CRC")
def damaged_zips(folder):
    path = archive(folder / "crc.zip", {"a.wav": sound_bytes(311)})
    data = bytearray(path.read_bytes())
    for place in (14, data.index(b"PK\x01\x02") + 16):
        data[place] ^= 1
    path.write_bytes(data)
    yield {"audio": "crc.zip/a.wav"}
    whole = archive(folder / "whole.zip", {"a.wav": sound_bytes(312)}).read_bytes()
    (folder / "cut.zip").write_bytes(whole[: len(whole) // 2])
    yield {"audio": "cut.zip/a.wav"}
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 16
    (folder / "flip.zip").write_bytes(flipped)
    yield {"audio": "flip.zip/a.wav"}
    yield {"audio": "whole.zip/b.wav"}


# --- Rows of the manifest


@refused("is longer than 1 MiB")
def gigantic_cells_and_rows(folder):
    yield b",,,,," + b"x" * (100 << 20) + b",big,,,,,", None
    yield b"," * 10_000_000, None


@refused("cells, the header|NUL|is no row of a CSV")
def rows_that_are_no_rows(folder):
    yield {"audio": "nul\0.wav"}
    yield b'"a"b.mp4,,,,,', None


@refused("cells, the header")
def rows_with_too_many_cells(folder):
    sound(folder / "a.wav", seed=321)
    name = f"{folder.name}/a.wav"
    yield f",{name},,,,,dog, cat,,,,,".encode(), name


@good(lambda samples: samples[0].meta["labels"] == [])
def rows_with_too_few_cells(folder):
    sound(folder / "a.wav", seed=322)
    name = f"{folder.name}/a.wav"
    yield f",{name}".encode(), name


@refused("must be a number")
def times_that_are_no_numbers(folder):
    sound(folder / "a.wav", seed=330)
    for seed, cell in enumerate(("soon", "nan", "inf", "-1", "1e999", "0,5", "1:30")):
        yield {"audio": sound(folder / f"{seed}.wav", seed=330 + seed).name, "start_s": cell}
    (folder / "m.csv").write_bytes(motion(seed=331))
    yield {"imu": "m.csv", "imu_rate_hz": "fast"}


@refused("must be train, val or test")
def unknown_splits(folder):
    yield {"audio": sound(folder / "a.wav", seed=340).name, "split": "dev"}


@refused("one recording with two")
def rows_that_contradict(folder):
    yield {"audio": sound(folder / "a.wav", seed=341).name, "split": "train"}
    yield {"audio": "a.wav", "split": "test"}


@refused("control character")
def labels_with_control_characters(folder):
    yield {"audio": sound(folder / "a.wav", seed=342).name, "label": "dog\x1b[31m"}


@good(lambda samples: set(samples[0].meta["labels"]) <= {"dog, brown", "two lines", "emoji \U0001f415"})
def odd_labels(folder):
    for seed, label in enumerate(("dog, brown", "two\nlines", " ; ;", "", "emoji \U0001f415")):
        yield {"audio": sound(folder / f"{seed}.wav", seed=345 + seed).name, "label": label}


@refused("ends before it starts|lies beyond|no track has anything|no length")
def clips_outside_or_reversed(folder):
    for seed, (start, end) in enumerate((("5", "6"), ("0.6", "0.2"), ("0", "60"), ("0.5", "0.5"))):
        path = sound(folder / f"{seed}.wav", seed=350 + seed)
        yield {"audio": path.name, "start_s": start, "end_s": end}


@good(lambda samples: len(samples) == 2)
def clips_that_overlap(folder):
    sound(folder / "a.wav", seed=355)
    yield {"audio": "a.wav", "start_s": "0", "end_s": "0.6"}
    yield {"audio": "a.wav", "start_s": "0.4", "end_s": "1"}
    yield {"audio": "a.wav", "start_s": "0.4", "end_s": "1"}


@good(lambda samples: samples[0].text is not None)
def texts_of_control_characters(folder):
    yield {"text": "a\tb\x07\x1b[2J\u202eend", "audio": sound(folder / "a.wav", seed=356).name}


@refused("neither a file nor a text|NUL|not UTF-8")
def texts_that_are_none(folder):
    yield b",,,,,   ,empty,,,,,", None
    yield b",,,,,\xff\xfe bad,,,,,,", None


# --- Inertial tables


@good(lambda samples: np.isfinite(samples[0].imu).all() and 150 <= len(samples[0].imu) <= 250)
def motion_whose_clock_goes_back_or_stands_still_for_a_moment(folder):
    lines = motion(seed=400).decode().splitlines()
    (folder / "back.csv").write_text("\n".join([*lines[:100], *lines[90:]]) + "\n")
    (folder / "still.csv").write_text("\n".join([*lines[:100], *[lines[100]] * 10, *lines[101:]]) + "\n")
    yield {"imu": "back.csv"}
    yield {"imu": "still.csv"}


@refused("order of time|clock")
def motion_whose_clock_goes_backwards_or_stands_still(folder):
    head, *lines = motion(seed=401).decode().splitlines()
    (folder / "backwards.csv").write_text("\n".join([head, *reversed(lines)]) + "\n")
    (folder / "still.csv").write_text("\n".join([head, *("0" + line[5:] for line in lines)]) + "\n")
    yield {"imu": "backwards.csv"}
    yield {"imu": "still.csv"}


@refused("IMU time spans|clock|jumps")
def motion_whose_clock_jumps_by_years(folder):
    head, *lines = motion(seed=402).decode().splitlines()
    later = [f"{1e8 + n * 0.02:.3f}{line[line.index(',') :]}" for n, line in enumerate(lines[100:])]
    (folder / "jump.csv").write_text("\n".join([head, *lines[:100], *later]) + "\n")
    yield {"imu": "jump.csv"}
    early = [f"{n * 0.02 - 1e8:.3f}{line[line.index(',') :]}" for n, line in enumerate(lines[:1])]
    (folder / "epoch.csv").write_text("\n".join([head, *early, *lines[1:]]) + "\n")
    yield {"imu": "epoch.csv"}


@good(lambda samples: np.isfinite(samples[0].imu).all())
def motion_with_a_few_gaps(folder):
    for seed, word in enumerate(("nan", "inf", "-Infinity", "", "1e300")):
        head, *lines = motion(seed=403 + seed).decode().splitlines()
        for number in range(10, 20, 5):
            lines[number] = lines[number].rsplit(",", 1)[0] + f",{word}"
        (folder / f"{seed}.csv").write_text("\n".join([head, *lines]) + "\n")
        yield {"imu": f"{seed}.csv"}


@refused("is NaN in|not a number")
def motion_full_of_nan_or_text(folder):
    for seed, word in enumerate(("nan", "inf", "high", "0x1F")):
        head, *lines = motion(seed=410 + seed).decode().splitlines()
        lines[::5] = [line.rsplit(",", 1)[0] + f",{word}" for line in lines[::5]]
        (folder / f"{seed}.csv").write_text("\n".join([head, *lines]) + "\n")
        yield {"imu": f"{seed}.csv"}


@good(lambda samples: len(samples[0].imu) == 200 and abs(samples[0].imu).max() > 1)
def motion_with_semicolons_tabs_or_decimal_commas(folder):
    (folder / "semicolon.csv").write_bytes(motion(seed=420, comma=";"))
    (folder / "tab.csv").write_bytes(motion(seed=421, comma="\t"))
    (folder / "decimal.csv").write_bytes(motion(seed=422, comma=";").replace(b".", b","))
    (folder / "nohead.csv").write_bytes(motion(seed=423, comma=";", header=False))
    for name in ("semicolon", "tab", "decimal", "nohead"):
        yield {"imu": f"{name}.csv"}


@refused("is empty|cut off|not an IMU table|fewer than 2 rows|no row|no IMU column|no time column|longer than|NaN")
def motion_that_is_none(folder):
    for seed, data in enumerate(
        (
            motion(1, seed=430),
            motion(seed=431).splitlines()[0] + b"\n",
            b"\n\n\n",
            b"hello\nworld\n",
            b"1,2,3,4,5,6\n" * 9,
            b"time,acc_x,acc_y,acc_z,gyro_x,gyro_y,gyro_z\n" + b"\0" * 999,
            b"x" * 200_000 + motion(seed=432),
            b"1," * 300_000,
            motion(seed=433).decode().encode("utf-16"),
            b"\xff\xd8\xff\xe0" + random.Random(1).randbytes(5000),
            b"{'a': 1}",
        )
    ):
        (folder / f"{seed}.csv").write_bytes(data)
        yield {"imu": f"{seed}.csv"}


@refused("spans|rate|order of time")
def motion_at_absurd_rates(folder):
    for seed, rate in enumerate(("1e-300", "1e-5", "1e300")):
        (folder / f"{seed}.csv").write_bytes(motion(seed=440 + seed))
        yield {"imu": f"{seed}.csv", "imu_rate_hz": rate}


# --- Files that are something else


@refused("not a media file|no video track|no audio track|not an image|no frame|cut off")
def wrong_extensions(folder):
    picture(folder / "p.png", seed=500).rename(folder / "png.mp4")
    yield {"video": "png.mp4"}
    sound(folder / "s.wav", seed=501).rename(folder / "wav.mp4")
    yield {"video": "wav.mp4"}
    sound(folder / "t.wav", seed=502).rename(folder / "wav.png")
    yield {"image": "wav.png"}
    (folder / "text.mp4").write_text("this is a text\n" * 99)
    yield {"video": "text.mp4"}
    (folder / "page.mp4").write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    yield {"video": "page.mp4"}
    archive(folder / "zip.mp4", {"a": b"a"})
    yield {"video": "zip.mp4"}
    (folder / "elf.wav").write_bytes(b"\x7fELF" + random.Random(1).randbytes(9000))
    yield {"audio": "elf.wav"}


@good(lambda samples: samples[0].audio is not None)
def sound_of_a_film(folder):
    video(folder / "v.mp4", seed=503).rename(folder / "film.wav")
    yield {"audio": "film.wav"}


@refused("not a media file")
def playlists(folder):
    target = video(folder / "target.mp4", seed=510)
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\nfile://{target}\n#EXT-X-ENDLIST\n",
        "concat.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "avs.avi": "Version()",
        "pattern%03d.mp4": "pattern",
    }
    for name, text in lists.items():
        (folder / name).write_text(text)
        yield {"video": name}


@refused("not an image")
def drawings_and_documents(folder):
    documents = {
        "svg.png": '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "pdf.jpg": "%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
        "eps.jpg": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\nshowpage\n",
        "php.gif": "<?php system('id'); ?>",
    }
    for name, text in documents.items():
        (folder / name).write_text(text)
        yield {"image": name}


class Evil:
    """What a pickle would run."""

    def __reduce__(self):
        return os.mkdir, ("pickle-was-run",)


def npy(shape: str, kind: str = "<u2", body: bytes = b"\0" * 64) -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(head)) + head.encode() + body


@refused("not a depth map|is no depth map")
def arrays_that_are_pickles(folder):
    (folder / "pickle.npy").write_bytes(pickle.dumps(Evil()))
    np.save(folder / "object.npy", np.array([Evil(), {}], object), allow_pickle=True)
    for name in ("pickle", "object"):
        yield {"depth": f"{name}.npy"}


@refused("not a depth map|is no depth map|million")
def arrays_of_absurd_shapes(folder):
    arrays = {
        "huge": npy("(1000000, 1000000)"),
        "negative": npy("(-1, 8)"),
        "overflow": npy("(4294967296, 4294967296, 4)"),
        "flat": npy("(32,)"),
        "none": npy("(0, 8)", body=b""),
        "dict": npy("{}"),
        "text": npy("(2, 2)", "<U4", b"\0" * 64),
        "bad": b"\x93NUMPY\x09\x09" + b"\xff" * 99,
        "token": npy("(2, 2"),
    }
    for name, data in arrays.items():
        (folder / f"{name}.npy").write_bytes(data)
        yield {"depth": f"{name}.npy"}


@good(lambda samples: samples[0].depth is not None)
def depth_of_nan_and_infinity(folder):
    np.save(folder / "nan.npy", np.array([[np.nan, np.inf], [-np.inf, -5.0]], np.float32))
    yield {"depth": "nan.npy"}
    np.save(folder / "big.npy", np.full((4, 4), 1e30))
    yield {"depth": "big.npy"}


@good(lambda samples: samples[0].image is not None)
def odd_pictures(folder):
    base = Image.fromarray(next(film(1, seed=450)))
    for mode, suffix in (("1", "png"), ("P", "gif"), ("LA", "png"), ("CMYK", "jpg"), ("I;16", "png"), ("F", "tif")):
        name = f"{mode.replace(';', '')}.{suffix}"
        (Image.new(mode, (40, 30), 300) if mode in ("I;16", "F") else base.convert(mode)).save(folder / name)
        yield {"image": name}
    others = [base.rotate(90 * n) for n in range(3)]
    base.save(folder / "moving.webp", save_all=True, append_images=others)
    yield {"image": "moving.webp"}


@refused("damaged|not an image")
def stills_with_a_damaged_one(folder):
    (folder / "film").mkdir()
    for number in range(8):
        picture(folder / "film" / f"{number}.png", seed=460 + number)
    data = (folder / "film" / "3.png").read_bytes()
    (folder / "film" / "3.png").write_bytes(data[: len(data) // 2])
    yield {"video": "film", "audio": sound(folder / "film.wav", seed=460).name}


# --- Sound


@good(lambda samples: samples[0].audio is not None and len(samples[0].audio) == 16_000)
def sixteen_channels(folder):
    yield {"audio": sound(folder / "many.wav", channels=16, seed=600).name}


@refused("not a media file|rate|no audio|no sound|longer than|cut off|damaged|jumps")
def sound_at_no_rate(folder):
    noise = random.Random(5).randbytes(16000)
    (folder / "zero.wav").write_bytes(wav(noise, hz=0))
    (folder / "one.wav").write_bytes(wav(noise + b"\0\0", hz=1))
    (folder / "fast.wav").write_bytes(wav(noise + b"\0\0\0\0", hz=0xFFFFFFFF))
    for name in ("zero", "one", "fast"):
        yield {"audio": f"{name}.wav"}


@refused("cut off")
def sound_that_claims_a_gigabyte(folder):
    (folder / "claim.wav").write_bytes(wav(random.Random(6).randbytes(16000), claim=1 << 30))
    yield {"audio": "claim.wav"}


@good(lambda samples: len(samples[0].audio) == 16_000)
def sound_that_claims_four_gigabytes(folder):
    for seed, claim in enumerate((0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFF, 0x7FFFF000)):
        (folder / f"{seed}.wav").write_bytes(wav(random.Random(10 + seed).randbytes(16000), claim=claim))
        yield {"audio": f"{seed}.wav"}


@good(lambda samples: samples[0].audio is not None)
def sound_of_nan(folder):
    (folder / "nan.wav").write_bytes(wav(np.full(8000, np.nan, "<f4").tobytes(), bits=32, kind=3))
    yield {"audio": "nan.wav"}
    (folder / "inf.wav").write_bytes(wav(np.full(8000, np.inf, "<f4").tobytes(), bits=32, kind=3))
    yield {"audio": "inf.wav"}


# --- Films


@refused("no frame|damaged|key frame|not a media file")
def films_without_a_key_frame(folder):
    yield {"video": video(folder / "a.mkv", keep=lambda n, p: n > 0, gop=99, sound_hz=None, seed=700).name}
    yield {"video": video(folder / "b.ts", keep=lambda n, p: not p.is_keyframe, gop=99, seed=701).name}


@good(lambda samples: len(samples[0].frames) == 8)
def films_whose_size_changes(folder):
    first = video(folder / "1.ts", size=(64, 48), sound_hz=None, seed=702).read_bytes()
    second = video(folder / "2.ts", size=(96, 80), sound_hz=None, pts=lambda i: i + 30, seed=703).read_bytes()
    (folder / "both.ts").write_bytes(first + second)
    yield {"video": "both.ts"}


@refused("the video's clock|longer than")
def films_whose_clock_jumps(folder):
    for name, jump in (("days", 10**7), ("hour", 90_000)):
        path = folder / f"{name}.mkv"
        yield {"video": video(path, pts=lambda i, j=jump: i + j * (i > 15), seed=704 + jump % 7, sound_hz=None).name}


@good(lambda samples: len(samples[0].frames) == 8 and abs(samples[0].meta["duration_s"] - 1.2) < 0.2)
def films_that_start_before_zero(folder):
    for seed, (suffix, early) in enumerate((("mp4", 5), ("ts", 50), ("mkv", 50))):
        yield {"video": video(folder / f"early.{suffix}", pts=lambda i, n=early: i - n, seed=710 + seed).name}


@refused("codec")
def unknown_codecs(folder):
    path = video(folder / "odd.mp4", seed=720)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz9"))
    yield {"video": path.name}
    path = video(folder / "odd.mkv", seed=721)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XXX"))
    yield {"video": path.name}


def _ebml(kind: str, body: bytes) -> bytes:
    return bytes.fromhex(kind) + struct.pack(">Q", len(body) | 1 << 56) + body


@refused("no video track|no audio track|not a media file")
def subtitles_alone(folder):
    head = _ebml("1A45DFA3", _ebml("4282", b"matroska"))
    track = _ebml("D7", b"\1") + _ebml("73C5", b"\1") + _ebml("83", b"\x11") + _ebml("86", b"S_TEXT/UTF8")
    block = _ebml("A0", _ebml("A1", b"\x81\0\0\0hello") + _ebml("9B", b"\x0f"))
    body = _ebml("1549A966", _ebml("2AD7B1", b"\x0f\x42\x40")) + _ebml("1654AE6B", _ebml("AE", track))
    (folder / "sub.mkv").write_bytes(head + _ebml("18538067", body + _ebml("1F43B675", _ebml("E7", b"\0") + block)))
    yield {"video": "sub.mkv"}
    (folder / "sub.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    yield {"audio": "sub.srt"}


@refused("no video track")
def cover_art_alone(folder):
    cover = io.BytesIO()
    Image.fromarray(next(film(1))).save(cover, "JPEG")
    body = b"\0image/jpeg\0\x03\0" + cover.getvalue()
    frame = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    with av.open(str(folder / "plain.mp3"), "w", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=16000, layout="mono")
        noise = 0.1 * np.random.default_rng(5).standard_normal((1, 16000)).astype(np.float32)
        chunk = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        chunk.sample_rate = 16000
        container.mux(stream.encode(chunk))
        container.mux(stream.encode(None))
    (folder / "song.mp3").write_bytes(b"ID3\3\0\0" + size + frame + (folder / "plain.mp3").read_bytes())
    yield {"video": "song.mp3"}


@good(lambda samples: len(samples[0].frames) == 8)
def films_of_a_hundred_thousand_by_two_pixels(folder):
    yield {"video": video(folder / "thin.mkv", frames=2, size=(100_000, 2), codec="ffv1", sound_hz=None).name}


# --- Manifests that end the run before it begins, with what is said: nothing of them can be trusted

MANIFESTS: dict[str, tuple[bytes, str]] = {
    "a manifest without a known column": (b"file,class\na.wav,dog\n", "has none of the columns"),
    "a manifest without a column of tracks": (b"label,split\ndog,train\n", "has none of the columns"),
    "a manifest without a header": (b"a.wav,dog\nb.wav,cat\n", "has none of the columns"),
    "a manifest with semicolons": (b"audio;label\na.wav;dog\n", "has none of the columns"),
    "a manifest with a column twice": (b"audio,label,label\na.wav,dog,cat\n", "has the column label twice"),
    "a manifest in UTF-16": ("audio,label\na.wav,dog\n".encode("utf-16"), "has none of the columns"),
    "a manifest that is a picture": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "has none of the columns"),
    "an empty manifest": (b"", "is empty"),
    "a manifest with ten million columns": (b"audio," * 10_000_000, "has none of the columns"),
    "a manifest with a quote that never closes": (b'audio,text\na.wav,"he said\n' + b"b.wav,\n" * 9, "row 2: a quote"),
    "a manifest cut off inside a quote": (b'audio,text\na.wav,fine\nb.wav,"he sa', "row 3: a quote"),
}

# --- Between plan and build: `change` is called once everything is planned


@refused("no such file")
def files_that_vanish(folder):
    yield {"audio": sound(folder / "a.wav", seed=800).name}
    yield {"image": picture(folder / "a.png", seed=800).name}


@refused("changed while|has changed|changed since")
def files_that_grow(folder):
    yield {"audio": sound(folder / "a.wav", seed=801).name}
    yield {"image": picture(folder / "a.bmp", seed=801).name}


def change(source: Path) -> None:
    """What happens to some files after the plan and before they are read."""
    for path in (source / "files-that-vanish").iterdir():
        path.unlink()
    for path in (source / "files-that-grow").iterdir():
        with open(path, "ab") as file:
            file.write(b"more")
