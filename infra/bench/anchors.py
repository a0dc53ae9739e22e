"""The anchor store at scale: to search and grow beside brute force and hnswlib, and what it costs a training step.

python -m infra.bench.anchors [--work DIR] [--parts search step losses] [--anchors 1000000] [--width 768] [--json]

search  `--anchors` vectors, batches of 256 queries, k = 32; seconds are CPU seconds of one thread, in one run. Brute
        force is a matrix product and topk in torch. Where FAISS and torch see a GPU, both search there, and seconds are
        those on the clock. hnswlib, in the peers' own environment (infra/bench/peers.sh),
        takes a tenth of the vectors, for all would take it an hour; the store is measured on that tenth, too.
        The vectors are made to be like embeddings: a mixture of 4,000 unequal clusters, each with a spread of its own
        in 16 directions, over a spectrum that falls as 1/j, and noise of that spectrum. Queries are other draws.
        Isotropic noise, which has no near neighbours to find, stands beside it without a bound.
step    a step of crossmodal-moe at its default sizes on the demo's recordings, teacher and student, forward and
        backward, with 10,000 anchors a space and with `--anchors`, by turns; anchors are representations of the
        recordings, mixed and jittered.
losses  a small run of the same with an index forced upon its anchors: the preservation term by approximate and by exact
        search, of the same model at the same steps.

Takes 8 GiB of memory at its default size, and 3 GiB below `--work`.
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from flows import build, stream
from flows.ingest import ingest
from flows.recipe import load_recipe, override
from infra.bench.common import ROOT, Bound, arguments, fresh, made, measure, note, report
from learner.methods.crossmodal_moe import CrossModalMoE
from learner.trainer import Trainer
from pipelines.synthesize import synthesize
from store.anchors import AnchorStore
from store.index import gpus
from store.lake import Lake
from store.ledger import Ledger

K, BATCH, MORE, CHUNK = 32, 256, 10_000, 20_000
GPU = torch.cuda.is_available() and gpus() > 0
SPACE = "x"


class Mixture:
    """Vectors like embeddings, see above; or isotropic noise.

    Args:
        width: of the vectors.
        isotropic: noise instead.
    """

    def __init__(self, width: int, *, isotropic: bool = False, clusters: int = 4000):
        random, self.isotropic, self.width = np.random.default_rng(0), isotropic, width
        if isotropic:
            return
        spectrum = 1 / np.sqrt(np.arange(width) + 8.0)
        self.spectrum = (spectrum / np.linalg.norm(spectrum)).astype(np.float32)
        self.turn = np.linalg.qr(random.normal(size=(width, width)))[0].astype(np.float32)
        self.centres = (random.normal(size=(clusters, width)) * self.spectrum).astype(np.float32)
        self.weights = random.dirichlet(np.ones(clusters))
        self.spreads = (random.normal(size=(clusters, 16, width)) * self.spectrum * 0.7 / 4).astype(np.float32)

    def draw(self, count: int, seed: int) -> np.ndarray:
        """`count` unit vectors, float32 ``[count, width]``."""
        random = np.random.default_rng([1, seed])
        vectors = random.standard_normal((count, self.width), np.float32)
        if not self.isotropic:
            vectors *= 0.3 * self.spectrum
            cluster = random.choice(len(self.centres), count, p=self.weights)
            place = random.standard_normal((count, 1, 16), np.float32)
            for at in np.split(np.argsort(cluster), np.cumsum(np.bincount(cluster))[:-1]):
                if len(at):
                    vectors[at] += self.centres[cluster[at[0]]] + place[at, 0] @ self.spreads[cluster[at[0]]]
            vectors = vectors @ self.turn
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def write(self, path: Path, count: int) -> None:
        """`count` vectors into one .npy."""
        rows = np.lib.format.open_memmap(path, "w+", np.float32, (count, self.width))
        for start in range(0, count, CHUNK):
            rows[start : start + CHUNK] = self.draw(min(CHUNK, count - start), start)


def cpu(act: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of `act`, or those on the clock where a GPU does the work, and what it gives."""
    clock = time.perf_counter if GPU else time.process_time
    start = clock()
    result = act()
    return clock() - start, result


def resident() -> int:
    """Bytes of this process's own memory, maps of files apart."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true neighbours that were found."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true, strict=True)]))


def brute_force(vectors: torch.Tensor, queries: np.ndarray) -> np.ndarray:
    """The true neighbours ``[B, K]``, by matrix product and topk."""
    values, ids = [], []
    for start in range(0, len(vectors), 10 * CHUNK):
        part = torch.from_numpy(queries).to(vectors.device) @ vectors[start : start + 10 * CHUNK].T
        best = part.topk(K)
        values.append(best.values)
        ids.append(best.indices + start)
    order = torch.cat(values, 1).topk(K).indices
    return torch.cat(ids, 1).gather(1, order).cpu().numpy()


def add(store: AnchorStore, first: int, vectors: np.ndarray) -> None:
    """Anchors with `vectors`, in portions."""
    for start in range(0, len(vectors), CHUNK):
        part = np.asarray(vectors[start : start + CHUNK])
        rows = [{"key": f"{first + start + i:08d}"} for i in range(len(part))]
        store.add(rows, {SPACE: (np.arange(len(part)), part)})


def search_rows(work: Path, count: int, width: int, *, isotropic: bool) -> tuple[list[dict[str, Any]], list[Bound]]:
    """Brute force, the store with floats and with codes, and both on a tenth beside hnswlib."""
    mixture = Mixture(width, isotropic=isotropic)
    kind = "isotropic" if isotropic else "mixture"
    file = (
        made(work / f"anchors-{kind}-{count}-{width}", lambda folder: mixture.write(folder / "vectors.npy", count))
        / "vectors.npy"
    )
    queries = mixture.draw(BATCH, -1 % 2**32)
    vectors = torch.from_numpy(np.load(file)).to("cuda" if GPU else "cpu")
    tenth = count // 10
    note(f"brute force, {kind}")
    seconds, true = cpu(partial(brute_force, vectors, queries))
    part_seconds, part_true = cpu(partial(brute_force, vectors[:tenth], queries))
    del vectors
    rows = [{"vectors": kind, "anchors": count, "what": "brute force", "search s": seconds, "recall": 1.0}]
    bounds = []
    for what, options in ("floats", {}), ("codes", {"max_bytes": count * width * 4 // 10}):
        note(f"{what}, {kind}")
        row = {"vectors": kind, "anchors": count, "what": what, **_store_row(file, count, mixture, true, options)}
        row["times"] = seconds / row["search s"]
        rows.append(row)
        if isotropic:
            continue
        bounds.append(Bound(f"{what}: recall@{K}", row["recall"], 0.99 if what == "floats" else 0.95, most=False))
        bounds.append(Bound(f"{what}: memory / bytes of the vectors", row["memory"], 1.2 if not options else 0.25))
        bounds.append(Bound(f"{what}: adding {MORE} / building", row[f"add {MORE} s"] / row["build s"], 0.05))
        bounds.append(Bound(f"{what}: indexes made while growing", row["made anew"], 0))
        if not options and not GPU:
            bounds.append(Bound("brute force / floats, search", row["times"], 10, most=False))
    if not isotropic:
        rows.append({"vectors": kind, "anchors": tenth, "what": "brute force", "search s": part_seconds, "recall": 1.0})
        row = _store_row(file, tenth, mixture, part_true, {})
        rows.append(
            {"vectors": kind, "anchors": tenth, "what": "floats", **row, "times": part_seconds / row["search s"]}
        )
        rows += _peer(work, file, tenth, queries, part_true, part_seconds)
    return rows, bounds


def _store_row(file: Path, count: int, mixture: Mixture, true: np.ndarray, options: dict[str, int]) -> dict[str, Any]:
    queries, vectors = mixture.draw(BATCH, -1 % 2**32), np.load(file, mmap_mode="r")
    before, store = resident(), AnchorStore(**options)
    growing, _ = cpu(lambda: add(store, 0, vectors[:count]))
    indexing, _ = cpu(lambda: store.search(SPACE, queries[:1], 1))
    memory = (resident() - before) / (count * mixture.width * 4)
    found, times = np.empty(0), []
    for _ in range(3):
        seconds, (_, found) = cpu(lambda: store.search(SPACE, queries, K))
        times.append(seconds)
    index = store._spaces[SPACE].index
    more = mixture.draw(MORE, count)
    adding, _ = cpu(lambda: add(store, count, more))
    there = store.search(SPACE, more[:BATCH], 1)[1].ravel()
    assert (there == np.arange(count, count + BATCH)).mean() > 0.99, "what was added is not found"
    return {
        "build s": growing + indexing,
        "search s": statistics.median(times),
        "recall": recall(found, true),
        "memory": memory,
        f"add {MORE} s": adding,
        "made anew": int(store._spaces[SPACE].index is not index),
    }


def _peer(
    work: Path, file: Path, count: int, queries: np.ndarray, true: np.ndarray, brute: float
) -> Iterator[dict[str, Any]]:
    python = work / "peers/bin/python"
    if not python.exists() or subprocess.run([python, "-c", "import hnswlib"], capture_output=True).returncode:
        note("hnswlib is absent")
        return
    note("hnswlib")
    np.save(work / "queries.npy", queries)
    np.save(work / "true.npy", true)
    command = [str(python), str(ROOT / "infra/bench/peer_hnswlib.py"), str(file), str(count), str(work)]
    for line in measure(command).output.splitlines():
        name, build_s, search_s, found = line.split("\t")
        taken = {"build s": float(build_s), "search s": float(search_s), "recall": float(found)}
        yield {"vectors": "mixture", "anchors": count, "what": name, **taken, "times": brute / float(search_s)}


def learnt(work: Path, anchors: int) -> tuple[Trainer, stream.StreamData]:
    """A run of the demo's stream that has learnt its first task, in a fresh copy of nothing but its recordings."""
    source = made(work / "anchors-samsemo", lambda folder: synthesize("samsemo", folder, size="small"))
    lake = Lake(fresh(work / "anchors-lake"))
    ingest(lake, "samsemo", source=source)
    recipe = override(load_recipe("samsemo"), [f"learner.anchors={anchors}", "learner.epochs=4"])
    one, ledger = build.run(recipe, method=None, seed=0, overridden=True), Ledger(lake)
    stream.seal(ledger, recipe)
    data = stream.load(ledger, recipe, build.modalities(ledger, recipe, one))
    trainer = build.trainer(lake, ledger, recipe, one, snapshot=None)
    trainer.features.prepare(data.shards(data.names))
    trainer.learn(trainer.task(1, data.names[1], data.tasks[1]))
    return trainer, data


def step_rows(work: Path, count: int) -> tuple[list[dict[str, Any]], list[Bound]]:
    """A training step with few and with many anchors."""
    trainer, data = learnt(work, 10)
    method = trainer.method
    assert isinstance(method, CrossModalMoE)
    task = trainer.task(2, data.names[2], data.tasks[2])
    groups = method.begin_task(task)
    batch = task.train.batch(np.arange(64) % len(task.train))
    with torch.no_grad():
        spaces = {s: v.numpy() for s, v in method.embed(task.train.batch(np.arange(len(task.train)))).items()}
    stores = {}
    for size in (10_000, count):
        note(f"{size} anchors in {', '.join(spaces)}")
        random, stores[size] = np.random.default_rng(0), AnchorStore()
        for start in range(0, size, CHUNK):
            n, parts = min(CHUNK, size - start), {}
            for space, known in spaces.items():
                a, b, c = (known[random.integers(len(known), size=n)] for _ in range(3))
                jitter = random.standard_normal(a.shape, np.float32) * (0.2 * np.abs(a).mean())
                parts[space] = np.arange(n), a + 0.5 * (b - c) + jitter
            stores[size].add([{"label": "x"} for _ in range(n)], parts)

    def step(size: int, seed: int) -> None:
        method.context = replace(method.context, anchors=stores[size])
        terms = method.loss(batch, None, torch.Generator().manual_seed(seed))
        torch.stack(list(terms.values())).sum().backward()
        for group in groups:
            for parameter in group["params"]:
                parameter.grad = None

    taken: dict[int, list[tuple[float, float]]] = {size: [] for size in stores}
    for number in range(12):
        for size in stores:
            start = time.perf_counter()
            seconds, _ = cpu(partial(step, size, number))
            if number > 1:  # warm
                taken[size].append((seconds, time.perf_counter() - start))
    rows = []
    for size, both in taken.items():
        used, waited = (statistics.median(one) for one in zip(*both, strict=True))
        rows.append({"what": "step", "anchors": size, "CPU ms": used * 1e3, "ms": waited * 1e3})
    first, second = rows
    bounds = [
        Bound(f"step, {name} at {count} / at 10000", second[name] / first[name], 1.1) for name in ("CPU ms", "ms")
    ]
    return rows, bounds


def loss_rows(work: Path) -> tuple[list[dict[str, Any]], list[Bound]]:
    """Preservation by exact and by approximate search in one run."""
    trainer, data = learnt(work, 200)
    method, plain = trainer.method, trainer.method.loss
    gaps: list[float] = []
    totals: list[float] = []

    def both(batch: Any, replay: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        state = generator.get_state()
        trainer.anchors.exact = 0
        approximate = plain(batch, replay, generator)
        generator.set_state(state)
        trainer.anchors.exact = len(trainer.anchors)
        exact = plain(batch, replay, generator)
        gaps.append(abs(float((approximate["preservation"] - exact["preservation"]).detach())))
        totals.append(float(sum(exact.values()).detach()))
        return exact

    method.loss = both  # type: ignore[method-assign]
    rows, bounds = [], []
    tasks = [trainer.task(1, data.names[1], data.tasks[1])]
    for number in (2, 3):
        gaps.clear(), totals.clear()
        tasks.append(trainer.task(number, data.names[number], data.tasks[number]))
        size = len(trainer.anchors)
        trainer.learn(tasks[-1], tasks[:-1])
        share = statistics.mean(gaps) / statistics.mean(totals)
        rows.append({"what": f"task {number}", "anchors": size, "steps": len(gaps), "loss": statistics.mean(totals)})
        rows[-1]["difference"] = statistics.mean(gaps)
        bounds.append(Bound(f"task {number}: difference of the losses / mean loss", share, 0.01))
    return rows, bounds


def main() -> int:
    """Run the parts, print a table each."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=["search", "step", "losses"], default=["search", "step", "losses"]
    )
    parser.add_argument("--anchors", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    given = parser.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    status = 0
    if "search" in given.parts:
        for isotropic, count in ((False, given.anchors), (True, given.anchors // 10)):
            rows, bounds = search_rows(work, count, given.width, isotropic=isotropic)
            status |= report(rows, bounds, as_json=given.json)
    if "step" in given.parts:
        status |= report(*step_rows(work, given.anchors), as_json=given.json)
    if "losses" in given.parts:
        status |= report(*loss_rows(work), as_json=given.json)
    return status


if __name__ == "__main__":
    sys.exit(main())
