"""Label files with a stream's champion, and show what it remembers that is like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import build
from flows.recipe import Recipe, load_recipe
from learner.trainer import Trainer
from pipelines.clip import ClipFormat, cut_all
from pipelines.readers import folder
from store import champions
from store.lake import Lake
from store.ledger import Ledger
from store.types import Clip, Modality, PalimpsestError, Recording, Sample, Seconds, Track

SUFFIXES = folder.SUFFIXES | {Modality.TEXT: {".txt"}}


def predict(
    lake: Lake,
    name: str | Recipe,
    files: Sequence[Path] = (),
    *,
    start: Seconds | None = None,
    end: Seconds | None = None,
    manifest: Path | None = None,
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
        neighbours: how many anchors to show.

    Returns:
        Rows with ``file, start_s, end_s, label, confidence, novelty`` (1 less the cosine to the nearest anchor, None
        without any) and ``nearest``: the anchors' label, cosine, and the source they come from.

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
    (run,) = ledger.rows("SELECT r.* FROM runs r JOIN snapshots USING (run_id) WHERE snapshot_id = ?", [snapshot])
    learnt = Recipe.model_validate_json(run["config"])  # what the champion learnt by; the recipe may say otherwise now
    one = build.run(learnt, method=run["method"], seed=run["seed"], overridden=False)
    trainer = build.trainer(lake, ledger, learnt, replace(one, run_id=run["run_id"]), snapshot=snapshot)
    return _rows(ledger, recipe, trainer, samples, neighbours)


def _rows(
    ledger: Ledger, recipe: Recipe, trainer: Trainer, samples: Sequence[tuple[Path, Sample]], neighbours: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if not samples:
        return rows
    sources = {
        row["recording"]: row["source_path"]
        for row in ledger.rows("SELECT recording, source_path FROM recordings WHERE dataset = ?", [recipe.dataset])
    }
    batch = trainer.features.encode([sample for _, sample in samples])
    spaces = trainer.method.embed(batch)
    confidence, best = trainer.method.predict(batch, spaces).softmax(1).max(1)
    for i, (path, sample) in enumerate(samples):
        there = [m for m, mask in batch.masks.items() if mask[i].any()]
        if not there:
            raise PalimpsestError(f"{path} has none of the modalities {', '.join(batch.masks)}")
        space = there[0] if len(there) == 1 and len(batch.masks) > 1 else "fused"
        similarity, ids = trainer.anchors.search(space, spaces[space][i : i + 1].detach().cpu().numpy(), neighbours)
        anchors = trainer.anchors.rows(ids[0]).to_pylist()
        nearest = [
            f"{anchor['label']} {cosine:.2f} {sources.get(anchor['recording'], anchor['recording'])}"
            for anchor, cosine in zip(anchors, similarity[0], strict=True)
        ]
        begin = sample.meta["start_s"]
        rows.append(
            {
                "file": str(path),
                "start_s": begin,
                "end_s": round(begin + sample.meta["duration_s"], 3),
                "label": trainer.index.classes[int(best[i])],
                "confidence": round(float(confidence[i]), 4),
                "novelty": round(1 - float(similarity[0].max()), 4) if similarity.size else None,
                "nearest": "; ".join(nearest),
            }
        )
    return rows


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
