"""hnswlib on the vectors in a .npy, on one thread; run by `anchors` with the Python of the peers' own environment."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hnswlib
import numpy as np


def main(file: str, count: str, work: str) -> None:
    """Prints a line a setting: its name, CPU seconds of building and of one search, and recall."""
    vectors = np.load(file, mmap_mode="r")[: int(count)]
    queries, true = np.load(Path(work) / "queries.npy"), np.load(Path(work) / "true.npy")
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=16, ef_construction=200)
    index.set_num_threads(1)
    start = time.process_time()
    index.add_items(vectors, num_threads=1)
    build = time.process_time() - start
    for ef in (64, 128, 256, 512, 1024):
        index.set_ef(ef)
        start = time.process_time()
        found, _ = index.knn_query(queries, k=true.shape[1], num_threads=1)
        search = time.process_time() - start
        hits = np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)])
        print(f"hnswlib, ef {ef}", build, search, hits, sep="\t")
        if hits >= 0.99:
            break


if __name__ == "__main__":
    main(*sys.argv[1:])
