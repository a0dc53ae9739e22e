"""Label files with a stream's champion, show what it remembers that is like them, and say what it has never met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

from flows import build
from flows.recipe import Recipe, load_recipe
from learner.batch import Batch
from learner.evaluate import NEIGHBOURS
from learner.methods.base import FUSED, Names
from learner.retrieval import Retrieval, vote
from learner.trainer import Trainer
from pipelines.clip import ClipFormat, cut_all
from pipelines.readers import folder
from store import champions
from store.lake import Lake
from store.ledger import Ledger
from store.types import Clip, Modality, PalimpsestError, Recording, Sample, Seconds, Track

SUFFIXES = folder.SUFFIXES | {Modality.TEXT: {".txt"}}
BEYOND = 0.05  # share of known things that lies beyond a bound of `familiarity`, at most
SURE = 0.01  # chance below which so many are no coincidence


@dataclass(frozen=True, slots=True)
class Seen:
    """Files as a stream's champion sees them.

    Attributes:
        samples: what was cut from the files, each with the file it is from; at least one.
        batch: the same, encoded.
    """

    ledger: Ledger
    recipe: Recipe
    snapshot: str
    trainer: Trainer
    samples: list[tuple[Path, Sample]]
    batch: Batch

    def modalities(self, i: int) -> list[Modality]:
        """Those of the champion's modalities that sample `i` has.

        Raises:
            PalimpsestError: it has none.
        """
        there = [modality for modality, mask in self.batch.masks.items() if mask[i].any()]
        if not there:
            raise PalimpsestError(f"{self.samples[i][0]} has none of the modalities {', '.join(self.batch.masks)}")
        return there

    def origins(self, anchors: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """By sample key what the ledger knows of where anchors come from: ``source_path, start_s, duration_s``."""
        sql = """
            SELECT s.key, c.source_path, s.start_s, s.duration_s FROM samples s
            JOIN recordings c USING (dataset, recording) WHERE s.dataset = $dataset AND list_contains($keys, s.key)"""
        keys = sorted({anchor["key"] for anchor in anchors})
        return {row["key"]: row for row in self.ledger.rows(sql, {"dataset": self.recipe.dataset, "keys": keys})}


def see(
    lake: Lake,
    name: str | Recipe,
    files: Sequence[Path],
    *,
    start: Seconds | None = None,
    end: Seconds | None = None,
    manifest: Path | None = None,
) -> Seen | None:
    """Cut files into samples and encode them for the stream's champion; None where a manifest lists nothing.

    Raises:
        PalimpsestError: the stream has learnt nothing yet, or a file cannot be used.
    """
    recipe = name if isinstance(name, Recipe) else load_recipe(name)
    ledger = Ledger(lake)
    snapshot = champions.champion(ledger, recipe.name)
    if snapshot is None:
        raise PalimpsestError(f"stream {recipe.name} has no champion yet: run `palimpsest update {recipe.name}`")
    found = [(path, _recording(path, start, end), path.absolute().parent) for path in files]
    if manifest is not None:
        if not manifest.is_file():
            raise PalimpsestError(f"no such file: {manifest}")
        found += [(Path(r.name), r, manifest.absolute().parent) for r in folder.read_manifest(manifest)]
    held = ledger.rows("SELECT format FROM datasets WHERE dataset = ? AND format IS NOT NULL", [recipe.dataset])
    format = ClipFormat.from_json(held[0]["format"]) if held else recipe.format  # as its samples were cut, first of all
    samples = [(path, sample) for path, recording, folder in found for sample in _cut(path, recording, format, folder)]
    if not samples:
        return None
    (run,) = ledger.rows("SELECT r.* FROM runs r JOIN snapshots USING (run_id) WHERE snapshot_id = ?", [snapshot])
    learnt = Recipe.model_validate_json(run["config"])  # what the champion learnt by; the recipe may say otherwise now
    one = build.run(learnt, method=run["method"], seed=run["seed"], overridden=False)
    one = replace(one, run_id=run["run_id"])
    trainer = build.trainer(lake, ledger, learnt, one, snapshot=snapshot, reading=True)
    batch = trainer.features.encode([sample for _, sample in samples])
    return Seen(ledger, recipe, snapshot, trainer, samples, batch)


def predict(
    lake: Lake,
    name: str | Recipe,
    files: Sequence[Path] = (),
    *,
    start: Seconds | None = None,
    end: Seconds | None = None,
    manifest: Path | None = None,
    names: Sequence[str] = (),
    neighbours: int = 3,
) -> list[dict[str, Any]]:
    """Predictions of the stream's champion, one row a sample.

    Args:
        lake: holds the stream.
        name: a recipe.
        files: recordings; what a file is is told by its suffix.
        start: of the clip in each file; without times a file is cut into the windows of the recipe's format.
        end: of the clip.
        manifest: more recordings, as `ingest folder` reads them.
        names: of the classes to choose among, met or not; those that the champion has learnt where none is given.
        neighbours: how many anchors to show.

    Returns:
        Rows with ``file, start_s, end_s, label, confidence``; ``domain``, for which the nearest anchors vote;
        ``novelty``, 1 less the cosine to the nearest anchor; ``unfamiliar``, whether it is as novel, or the champion as
        unsure, as with hardly any of its own val samples given the same modalities (the view `familiarity`; how sure it
        is among given `names` does not count); and
        ``nearest``: the anchors' label, cosine, and source. What the champion cannot say is None: without anchors,
        domains, or val samples of these modalities.

    Raises:
        PalimpsestError: the stream has learnt nothing yet, a file cannot be used, or there are `names` and the
            champion's method knows classes by their samples alone.
    """
    seen = see(lake, name, files, start=start, end=end, manifest=manifest)
    if seen is None:
        return []
    known = seen.ledger.rows("FROM familiarity WHERE snapshot_id = ?", [seen.snapshot])
    bounds = {row["modalities"]: row for row in known}
    anchors, method = seen.trainer.anchors, seen.trainer.method
    if names and not isinstance(method, Names):
        raise PalimpsestError(
            f"the champion of {seen.recipe.name} learnt by {seen.trainer.settings.method}, which knows classes by "
            "their samples and not by name; leave the names out, or learn by comm"
        )
    retrieval = Retrieval(anchors)
    spaces, classes = method.embed(seen.batch), names or seen.trainer.index.classes
    scores = method.predict_names(seen.batch, names) if isinstance(method, Names) and names else None
    confidence, best = (method.predict(seen.batch, spaces) if scores is None else scores).softmax(1).max(1)
    found: list[tuple[np.ndarray, list[dict[str, Any]], dict[str, Any] | None]] = []
    for i in range(len(seen.samples)):
        there = seen.modalities(i)
        whole = len(there) == len(seen.batch.masks)
        space = there[0] if len(there) == 1 and not whole else FUSED
        similarity, near = np.empty(0), []
        if len(anchors.ids(space)):
            query = spaces[space][i : i + 1].detach().cpu().numpy()
            (similarity,), (ids,) = retrieval.search(space, query, max(neighbours, NEIGHBOURS))
            near = anchors.rows(ids).to_pylist()
        found.append((similarity, near, bounds.get("all" if whole else "+".join(there))))
    origins = seen.origins(anchor for _, near, _ in found for anchor in near[:neighbours])
    rows: list[dict[str, Any]] = []
    for i, (similarity, near, bound) in enumerate(found):
        path, sample = seen.samples[i]
        novelty = 1 - float(similarity[0]) if near else None
        nearest = [
            f"{anchor['label']} {cosine:.2f} {origins.get(anchor['key'], {}).get('source_path') or anchor['recording']}"
            for anchor, cosine in zip(near[:neighbours], similarity, strict=False)
        ]
        begin = sample.meta["start_s"]
        rows.append(
            {
                "file": str(path),
                "start_s": begin,
                "end_s": round(begin + sample.meta["duration_s"], 3),
                "label": classes[int(best[i])],
                "confidence": round(float(confidence[i]), 4),
                "domain": _domain(similarity, near),
                "novelty": None if novelty is None else round(novelty, 4),
                "unfamiliar": _beyond(bound, novelty, 1.0 if names else float(confidence[i])),
                "nearest": "; ".join(nearest),
            }
        )
    return rows


def _domain(similarity: np.ndarray, near: Sequence[Mapping[str, Any]]) -> str | None:
    """The domain with most of the votes of the nearest anchors, where they have any."""
    known = [i for i, anchor in enumerate(near[:NEIGHBOURS]) if anchor["domain"]]
    if not known:
        return None
    return vote(similarity[None, known], np.array([[near[i]["domain"] for i in known]]))[0][0]


def _beyond(bound: Mapping[str, Any] | None, novelty: float | None, confidence: float) -> bool | None:
    if bound is None or novelty is None:
        return None
    return bool(novelty > bound["novelty_bound"] or confidence < bound["confidence_bound"])


def doubt(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What to tell a person where far more rows of `predict` are unfamiliar than known things would be, else None.

    Far more: at least twice as many, and as many only once in a hundred times by the binomial distribution.
    """
    judged = [row for row in rows if row["unfamiliar"] is not None]
    n, beyond = len(judged), sum(row["unfamiliar"] for row in judged)
    chance = sum(comb(n, k) * BEYOND**k * (1 - BEYOND) ** (n - k) for k in range(beyond, n + 1))
    if chance >= SURE or beyond < 2 * BEYOND * n:
        return None
    domains = Counter(row["domain"] for row in judged if row["unfamiliar"] and row["domain"]).most_common(1)
    nearest = f" The nearest domain is {domains[0][0]} ({domains[0][1]} of {beyond})." if domains else ""
    return (
        f"{beyond} of {n} look like nothing this stream has learnt ({BEYOND * n:.1f} would be expected): "
        f"an unknown class or domain?{nearest}"
    )


def _cut(path: Path, recording: Recording, format: ClipFormat, folder: Path) -> list[Sample]:
    try:
        return list(cut_all(recording, format, folder))
    except PalimpsestError as error:
        raise PalimpsestError(f"{path}: {error}") from error


def _recording(path: Path, start: Seconds | None, end: Seconds | None) -> Recording:
    if not path.is_file():
        raise PalimpsestError(f"no such file: {path}")
    modality = next((m for m, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes), None)
    if modality is None:
        raise PalimpsestError(f"{path}: what kind of recording is {path.suffix or 'this'}? Use a --manifest to say so")
    clips = () if start is None and end is None else (Clip(start or 0.0, end),)
    return Recording(path.name, {modality: Track(Path(path.absolute().name))}, clips)
