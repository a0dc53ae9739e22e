"""video2dataset on a folder of clips; run by `throughput` with the Python of the peers' own environment.

Release 1.3.0 has two faults that lose every clip: subsamplers lack the attribute that says what they write, and on
Python 3.8 and later they may not change the dict that is iterated over. Both are mended here, nothing else is touched.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

from video2dataset import video2dataset
from video2dataset.subsamplers import FrameSubsampler, ResolutionSubsampler

ResolutionSubsampler.encode_formats = FrameSubsampler.encode_formats = {"video": "mp4"}
for kind in (ResolutionSubsampler, FrameSubsampler):
    kind.__call__ = lambda self, streams, metas=None, call=kind.__call__: call(self, dict(streams), metas)


def main(clips: str, out: str, workers: str) -> None:
    """Frames at 1 fps, 224 pixels high, and the sound, into tars; prints what it took as JSON."""
    files = sorted(Path(clips).glob("*.mp4"))
    urls = Path(out).with_suffix(".csv")
    urls.write_text("url\n" + "".join(f"{path}\n" for path in files))
    config = {
        "subsampling": {
            "ResolutionSubsampler": {"args": {"video_size": 224, "resize_mode": ["scale"]}},
            "FrameSubsampler": {"args": {"frame_rate": 1}},
        },
        "reading": {"yt_args": {}, "timeout": 60, "sampler": None},
        # Several shards a worker, so that all end at about the same time, and no more than a worker lives for (5).
        "storage": {"number_sample_per_shard": -(-len(files) // (4 * int(workers)))}
        | {"oom_shard_count": 5, "captions_are_subtitles": False},
        "distribution": {"processes_count": int(workers), "thread_count": 1, "subjob_size": 1000}
        | {"distributor": "multiprocessing"},
    }
    formats = {"video": "mp4", "audio": "wav"}
    begun, before = time.monotonic(), _cpu()
    with contextlib.redirect_stdout(sys.stderr):
        video2dataset(
            str(urls), out, output_format="webdataset", input_format="csv", encode_formats=formats, config=config
        )
    took = {"seconds": time.monotonic() - begun, "cpu_s": _cpu() - before}
    done = sum(json.loads(path.read_text())["successes"] for path in Path(out).glob("*_stats.json"))
    if done != len(files):
        sys.exit(f"{done} of {len(files)} clips")
    print(json.dumps(took))


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


if __name__ == "__main__":
    main(*sys.argv[1:])
