"""Find what a stream's champion remembers that is most like a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.predict import see
from flows.recipe import Recipe
from learner.evaluate import searches, subsets
from learner.retrieval import Retrieval
from store.lake import Lake
from store.types import Modality, PalimpsestError, Seconds


@torch.no_grad()
def similar(
    lake: Lake,
    name: str | Recipe,
    file: Path,
    *,
    start: Seconds | None = None,
    end: Seconds | None = None,
    by: str | None = None,
    count: int = 5,
) -> list[dict[str, Any]]:
    """The anchors of the stream's champion that lie nearest to a file, nearest first, for each sample cut from it.

    Args:
        lake: holds the stream.
        name: a recipe.
        file: a recording; what it is is told by its suffix.
        start: of the clip in it; without times it is cut into the windows of the recipe's format.
        end: of the clip.
        by: what to compare by: a modality, several (``audio+video``), ``all``, or one that asks for another
            (``audio>video``); None for all that the sample has.
        count: how many anchors a sample.

    Returns:
        Rows with ``at_s``, where in the file the sample begins; ``cosine, label, domain, task``; and which recording
        the anchor is of: ``dataset, source_path, start_s, duration_s``, None where the ledger has it no longer.

    Raises:
        PalimpsestError: the stream has learnt nothing yet, the file cannot be used, or cannot be compared so.
    """
    seen = see(lake, name, [file], start=start, end=end)
    assert seen is not None  # a file is at least one sample
    method, anchors, modalities = seen.trainer.method, seen.trainer.anchors, list(seen.batch.masks)
    retrieval = Retrieval(anchors)
    aligned = getattr(method, "aligned", False)
    ways = {
        asked: (chosen, query, space)
        for given, chosen in subsets(modalities)
        for asked, query, space in searches(given, chosen, modalities, aligned=aligned)
        if {query, space} <= set(anchors.spaces)
    }
    spaces: dict[tuple[Modality, ...], dict[str, Tensor]] = {}
    found = []
    for i, (path, sample) in enumerate(seen.samples):
        there = seen.modalities(i)
        way = by or (there[0] if len(there) == 1 < len(modalities) else "all")
        if way not in ways:
            raise PalimpsestError(f"stream {seen.recipe.name} cannot compare by {way!r}; it can by {', '.join(ways)}")
        chosen, query, space = ways[way]
        if not set(chosen) & set(there):
            raise PalimpsestError(f"{path} has no {' and no '.join(chosen)}; it has {', '.join(there)}")
        if chosen not in spaces:
            spaces[chosen] = method.embed(seen.batch.only(chosen))
        similarity, ids = retrieval.search(space, spaces[chosen][query][i : i + 1].cpu().numpy(), count, asked=query)
        for cosine, anchor in zip(similarity[0].tolist(), anchors.rows(ids[0]).to_pylist(), strict=True):
            found.append((sample.meta["start_s"], cosine, anchor))
    origins = seen.origins(anchor for _, _, anchor in found)
    columns = ("source_path", "start_s", "duration_s")
    return [
        {
            "at_s": begin,
            "cosine": round(cosine, 4),
            **{name: anchor[name] for name in ("label", "domain", "task", "dataset")},
            **{name: origins.get(anchor["key"], {}).get(name) for name in columns},
        }
        for begin, cosine, anchor in found
    ]
