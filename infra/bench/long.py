"""Constant memory: a recording of three hours, in windows of ten seconds.

python -m infra.bench.long [--work DIR] [--hours 3] [--json]

Video of 320x240 at 25 fps with sound at 48 kHz, a short encode repeated without encoding again, and a table of inertial
samples at 50 Hz. Peak resident memory is that of the larger of the driver and its worker.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from infra.bench.common import Bound, arguments, fresh, ingest_command, made, measure, note, report, write_recipe

WINDOW_S, HZ, PIECE_S = 10, 50, 60
MIB = 500


def make_recording(folder: Path, hours: float) -> None:
    """One long video with sound, one table, one manifest."""
    ffmpeg, piece = ["ffmpeg", "-v", "error", "-y"], folder / "piece.mp4"
    scene, sound = "testsrc2=s=320x240:r=25,noise=alls=3:allf=t:all_seed=1", "anoisesrc=c=pink:a=0.2:r=48000:seed=1"
    coded = f"-t {PIECE_S} -c:v libx264 -preset fast -b:v 200k -g 125 -pix_fmt yuv420p -c:a aac -b:a 64k -ac 2"
    subprocess.run(
        [*ffmpeg, "-f", "lavfi", "-i", scene, "-f", "lavfi", "-i", sound, *coded.split(), str(piece)], check=True
    )
    length = hours * 3600
    repeated = ["-stream_loop", str(math.ceil(length / PIECE_S)), "-i", str(piece), "-t", str(length), "-c", "copy"]
    subprocess.run([*ffmpeg, *repeated, str(folder / "long.mp4")], check=True)
    piece.unlink()
    random = np.random.default_rng(0)
    with open(folder / "long.csv", "w") as file:
        file.write("t,ax,ay,az,gx,gy,gz\n")
        for second in range(int(length)):
            times = second + np.arange(HZ)[:, None] / HZ
            np.savetxt(file, np.hstack([times, random.normal(size=(HZ, 6))]), "%.4f", ",")
    (folder / "manifest.csv").write_text("video,imu,label\nlong.mp4,long.csv,long\n")


def main() -> int:
    """Ingest the recording and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--hours", type=float, default=3.0)
    given = parser.parse_args()
    work = given.work.absolute()
    source = made(work / f"long-{given.hours:g}h", lambda folder: make_recording(folder, given.hours))
    recipe, lake = write_recipe(work / "long.yaml", window_s=WINDOW_S), fresh(work / "long-lake")
    note("ingest")
    one = measure(ingest_command(lake, recipe, source, 1))
    from store.lake import Lake
    from store.ledger import Ledger

    asked = Ledger(Lake(lake)).rows(
        "SELECT count(*) AS n, count(*) FILTER (len(modalities) = 3) AS whole FROM samples"
    )[0]
    fresh(lake)
    peak = max(one.driver_mib, one.worker_mib)
    row = {"hours": given.hours, "seconds": one.seconds, "CPU s": one.cpu_s, "peak MiB": peak}
    windows = round(given.hours * 3600 / WINDOW_S)
    return report(
        [row | {"samples": asked["n"], "of all modalities": asked["whole"]}],
        [
            Bound("peak resident MiB", peak, MIB),
            Bound("samples missing or too many", abs(asked["n"] - windows), 0),
            Bound("samples that lack a modality", asked["n"] - asked["whole"], 0),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    sys.exit(main())
