"""Clips into shards: ours beside a full decode, ffmpeg and video2dataset, side by side in one run.

python -m infra.bench.throughput [--work DIR] [--clips 200] [--rounds 2] [--workers 2] [--only WAY ...] [--json]

200 clips of 10 s, 640x360, 25 fps, h264 (a key frame every 125) and 48 kHz stereo AAC, 600-800 kbit/s. Every way runs
in a process of its own, all by turns; seconds of CPU are those of the process and its children from when its imports
are done (its workers' own are counted). What a way makes:

floor       every frame and sound decoded in process, one thread a process, nothing kept: what the others add to
1 fps       `ingest`: a frame a second and the sound
8 frames    `ingest`: eight frames at their exact times and the sound
key frames  `ingest`: the key frames and the sound
ffmpeg      one process a clip: a JPEG a second and a WAV, in a folder
video2dataset  in a venv of its own (infra/bench/peers.sh): its resolution and frame subsamplers and its sound, in tars

Frames are 398x224, what video2dataset makes of 640x360 when it is asked for 224; sound is 16 kHz mono, and as it was
where video2dataset makes it.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from infra.bench.common import ROOT, Bound, arguments, fresh, made, note, report, with_tail

SIZE = (398, 224)
OURS: dict[str, dict[str, Any]] = {
    "1 fps": {"frame_hz": 1.0},
    "8 frames": {"frames": 8},
    "key frames": {"keyframes": True},
    "key frames, no sound": {"keyframes": True, "audio_hz": None},
}
PEERS = ("ffmpeg", "video2dataset")
SCENES = (
    "testsrc2=s=640x360:r=25,hue=h=20*t,noise=alls=6:allf=t:all_seed=1",
    "mandelbrot=s=640x360:r=25:start_scale=0.5:end_scale=0.01:end_pts=250,noise=alls=4:allf=t:all_seed=2",
    "life=s=160x90:mold=10:r=25:ratio=0.1:seed=3:death_color=#203050:life_color=#e0d080,scale=640:360:flags=bicubic",
    "gradients=s=640x360:r=25:seed=5:speed=0.05:nb_colors=6,noise=alls=10:allf=t:all_seed=4",
)
SOUNDS = (
    "anoisesrc=c=pink:a=0.2:r=48000:seed=1,tremolo=f=3",
    "aevalsrc=0.3*sin(2*PI*(200+80*t)*t)|0.3*sin(2*PI*300*t):s=48000",
    "anoisesrc=c=brown:r=48000:seed=3",
    "sine=f=440:r=48000:b=4",
)


def make_clips(folder: Path, count: int) -> None:
    """Four encodes, and `count` files of other bytes that decode as one of them; with a manifest."""
    ffmpeg = ["ffmpeg", "-v", "error", "-y"]
    coded = "-t 10 -c:v libx264 -threads 1 -preset medium -b:v 600k -g 125 -pix_fmt yuv420p -c:a aac -b:a 96k -ac 2"
    templates = []
    for number, (scene, sound) in enumerate(zip(SCENES, SOUNDS, strict=True)):
        path = folder / f"scene{number}.mp4"
        inputs = ["-f", "lavfi", "-i", scene, "-f", "lavfi", "-i", sound]
        subprocess.run([*ffmpeg, *inputs, *coded.split(), str(path)], check=True)
        templates.append(path.read_bytes())
        path.unlink()
    names = [f"{number:04d}.mp4" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(with_tail(templates[number % len(templates)], number))
    (folder / "manifest.csv").write_text(
        "video,label\n" + "".join(f"{name},scene{i % 4}\n" for i, name in enumerate(names))
    )


def decode(path: Path) -> int:
    """Decode all of `path` on one thread; returns the number of frames."""
    import av

    with av.open(str(path)) as container:
        for stream in container.streams:
            stream.codec_context.thread_count = 1
        return sum(1 for packet in container.demux() for _ in packet.decode())


def extract(path: Path, out: Path) -> None:
    """One ffmpeg process: ten JPEGs and a WAV."""
    pictures = ["-vf", f"fps=1,scale={SIZE[0]}:{SIZE[1]}", "-q:v", "3", str(out / f"{path.stem}.%03d.jpg")]
    sound = ["-vn", "-ac", "1", "-ar", "16000", str(out / f"{path.stem}.wav")]
    threads = ["-threads", "1", "-filter_threads", "1"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *threads, "-i", str(path), *pictures, *sound], check=True)


def run_way(way: str, clips: Path, out: Path, workers: int) -> None:
    """Do all clips in one way, in this process and its children; prints what it took as JSON."""
    from pipelines.clip import ClipFormat
    from pipelines.ingest import ingest
    from pipelines.readers import reader
    from store.lake import Lake

    files = sorted(clips.glob("*.mp4"))
    begun, before = time.monotonic(), _cpu()
    if way == "floor":
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            assert min(pool.map(decode, files)) > 250
    elif way == "ffmpeg":
        out.mkdir(parents=True)
        with ThreadPoolExecutor(workers) as threads:
            list(threads.map(lambda path: extract(path, out), files))
    else:
        format = ClipFormat(frame_size=SIZE, **OURS[way])
        done = ingest(Lake(out), reader("folder"), clips, format=format, dataset="bench", workers=workers)
        assert done.samples == len(files), done
    print(json.dumps({"seconds": time.monotonic() - begun, "cpu_s": _cpu() - before}))


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def ways(work: Path) -> list[str]:
    """The ways there are here."""
    from pipelines.clip import ClipFormat

    known = {field.name for field in fields(ClipFormat)}
    ours = [way for way, settings in OURS.items() if settings.keys() <= known]
    return ["floor", *ours, *(peer for peer in PEERS if peer == "ffmpeg" or (work / "peers" / ".ready").exists())]


def turn(way: str, clips: Path, work: Path, workers: int) -> dict[str, float] | None:
    """One turn of one way; None where it fails, with its words on stderr."""
    out = fresh(work / "out")
    if way == "video2dataset":
        command = [str(work / "peers/bin/python"), str(ROOT / "infra/bench/peer_video2dataset.py")]
    else:
        command = [sys.executable, "-m", "infra.bench.throughput", "--way", way]
    command += [str(clips), str(out), str(workers)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    fresh(out)
    if done.returncode:
        note(f"{way} failed:\n{done.stderr[-2000:]}")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def figures(taken: dict[str, list[dict[str, float]]], count: int) -> Iterable[dict[str, Any]]:
    """One row a way: the median over its turns."""
    floor = statistics.median(one["cpu_s"] for one in taken["floor"]) / count
    for way, turns in taken.items():
        cpu = statistics.median(one["cpu_s"] for one in turns) / count
        rate = count / statistics.median(one["seconds"] for one in turns)
        yield {"way": way, "turns": len(turns), "CPU s/clip": cpu, "x floor": cpu / floor, "clips/s": rate}


def main() -> int:
    """Run all ways by turns and print the table."""
    if sys.argv[1:2] == ["--way"]:
        run_way(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))
        return 0
    parser = arguments(__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2, help="turns of every way; video2dataset, the slowest, has one")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these ways, and the floor")
    given = parser.parse_args()
    work, count = given.work.absolute(), given.clips
    clips = made(work / f"clips-{count}", lambda folder: make_clips(folder, count))
    there = [way for way in ways(work) if given.only is None or way in {"floor", *given.only}]
    taken: dict[str, list[dict[str, float]]] = {}
    for number in range(given.rounds):
        for way in there:
            if way != "video2dataset" or number == 0:
                note(f"round {number + 1}: {way}")
                if figure := turn(way, clips, work, given.workers):
                    taken.setdefault(way, []).append(figure)
    rows = {row["way"]: row for row in figures(taken, count)}
    absent = [{"way": way, "turns": "absent"} for way in (*OURS, *PEERS) if way not in rows and given.only is None]
    floor = {"1 fps": 1.4, "8 frames": 1.05, "key frames": 0.3}
    bounds = [
        Bound(f"{way}, CPU in full decodes", rows[way]["x floor"], limit) for way, limit in floor.items() if way in rows
    ]
    if peer := rows.get("video2dataset"):
        for way, limit in (("1 fps", 8), ("8 frames", 11)):
            if way in rows:
                ratio = rows[way]["clips/s"] / peer["clips/s"]
                bounds.append(Bound(f"{way}, clips/s of video2dataset's", ratio, limit, most=False))
    return report([*rows.values(), *absent], bounds, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
