"""What the frozen `tiny` backbones are worth: linear discriminants on their features, and on plain ones.

python -m infra.bench.probe --lake LAKE [STREAM ...] [--json]

LAKE holds the ingested data sets of the streams; without names, all packaged streams whose data set it has. Both sides
are read by method `slda` over the same tasks. Plain features are what people start from: ten log-mel spectra, eight
frames of 8 x 8 pixels, pictures and depth of 16 x 16, sixteen readings of the sensors, counts of letter n-grams. The
backbones must not be worse beyond chance: the 95 % bootstrap interval of the difference, recordings drawn again, must
reach zero.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flows import build, stream
from flows.compare import paired_difference
from flows.recipe import Recipe, load_recipe, names
from infra.bench.common import Bound, arguments, note, report
from learner.backbones import tiny
from learner.backbones.base import Backbone, Block
from learner.data import ClassIndex, Examples, Task
from learner.features import TrunkFeatures
from learner.loader import Damage
from learner.methods.base import Context
from learner.methods.slda import SLDA
from learner.pictures import depth_picture, pixels
from learner.registry import backbones
from store.anchors import AnchorStore
from store.lake import Lake
from store.ledger import Ledger
from store.types import Modality, Sample, Split

CPU = torch.device("cpu")
Row = dict[str, Any]


def cells(signal: np.ndarray, count: int) -> np.ndarray:
    """``[T, d]`` -> ``[count * d]``: means of equal parts."""
    edges = np.linspace(0, len(signal), count + 1)
    parts = (signal[int(a) : max(int(np.ceil(b)), int(a) + 1)] for a, b in pairwise(edges))
    return np.concatenate([part.mean(0) for part in parts])


def thumbnail(picture: np.ndarray, size: int) -> np.ndarray:
    """``[64, 64, 3]`` -> ``[size * size * 3]``."""
    block = 64 // size
    return picture.reshape(size, block, size, block, 3).mean((1, 3)).ravel()


def plain(sample: Sample, modality: Modality) -> np.ndarray:
    """The plain features ``[P]`` of one modality of a sample."""
    if modality is Modality.AUDIO:
        return cells(tiny.log_mel(sample.audio).reshape(-1, 64), 10)  # type: ignore[arg-type]
    if modality is Modality.VIDEO:
        chosen = np.linspace(0, len(sample.frames) - 1, 8).round().astype(int)
        return np.concatenate([thumbnail(pixels(sample.frames[i], 64), 8) for i in chosen])
    if modality is Modality.IMU:
        return cells(sample.imu, 16)  # type: ignore[arg-type]
    if modality is Modality.TEXT:
        return tiny.word_patches(sample.text or "").mean(0)
    picture = sample.image if modality is Modality.IMAGE else depth_picture(sample.depth)  # type: ignore[arg-type]
    return thumbnail(pixels(picture, 64), 16)  # type: ignore[arg-type]


class Plain:
    """Plain features as a backbone of no blocks, whose one token they are; see `backbones.base.Backbone`."""

    tokens, digest = 1, "plain features"

    def __init__(self, modality: Modality, width: int):
        self.name, self.modality, self.dim, self.pooled_dim = f"plain-{modality}", modality, width, width
        self.blocks: list[Block] = []  # of its own: a trunk that two share is one trunk

    def patches(self, sample: Sample) -> np.ndarray:
        """``[1, P]``."""
        return plain(sample, self.modality)[None].astype(np.float32)

    def stem(self, patches: Tensor, mask: Tensor) -> Tensor:
        """As they are."""
        return patches

    def pool(self, h: Tensor, mask: Tensor) -> Tensor:
        """``[B, P]``."""
        return F.pad(h, (0, 0, 0, 1))[:, 0] * mask.any(1, keepdim=True)


def credits(lake: Lake, data: stream.StreamData, models: dict[Modality, Backbone]) -> list[Row]:
    """What each recording of the test split adds to the average accuracy of `slda`; see the view `recording_credit`."""
    features = TrunkFeatures(lake, models, dict.fromkeys(models), CPU, Damage())
    index = ClassIndex()
    method = SLDA(Context(models, 1, index, AnchorStore(), CPU))
    credit: dict[tuple[str, int], float] = defaultdict(float)
    samples: dict[tuple[str, int], int] = {}
    met: dict[int, Examples] = {}
    for number, splits in data.tasks.items():
        index.add(splits[Split.TRAIN].groups)
        train, val, test = (Examples(features, splits[split], index) for split in Split)
        method.end_task(Task(number, data.names[number], train, val, test))
        if len(test):
            met[number] = test
            samples |= Counter((example.recording, number) for example in test.examples)
        for on_task, examples in met.items():
            for batch in examples.batches():
                right = (method.predict(batch).argmax(1) == batch.labels).tolist()
                for example, hit in zip(batch.examples, right, strict=True):
                    credit[example.recording, on_task] += hit / (len(data.tasks) * len(met))
    return [
        {"recording": recording, "on_task": task, "samples": count, "credit": credit[recording, task]}
        for (recording, task), count in samples.items()
    ]


def average(rows: list[Row]) -> float:
    """The average accuracy in per cent."""
    samples: Counter[int] = Counter()
    for row in rows:
        samples[row["on_task"]] += row["samples"]
    return 100 * float(sum(row["credit"] / samples[row["on_task"]] for row in rows))


def probe(lake: Lake, recipe: Recipe) -> Row:
    """The stream's figures on both kinds of features."""
    ledger = Ledger(lake)
    stream.seal(ledger, recipe)
    wanted = build.modalities(ledger, recipe, build.run(recipe, method=None, seed=0, overridden=False))
    data = stream.load(ledger, recipe, wanted)
    found = next(iter(data.tasks.values()))[Split.TRAIN]
    widths: dict[Modality, int] = {}
    for example in found:
        if len(widths) == len(wanted):
            break
        sample = Damage().read(example)
        for m in map(Modality, wanted):
            if sample is not None and m in sample.modalities and m not in widths:
                widths[m] = len(plain(sample, m))
    small = backbones({str(m): "tiny" for m in widths}, lake, CPU)
    ours, plainly = credits(lake, data, small), credits(lake, data, {m: Plain(m, w) for m, w in widths.items()})
    differences = {name: 100 * value for name, value in paired_difference(ours, plainly).items()}
    return {"stream": recipe.name, "tiny": average(ours), "plain": average(plainly), **differences}


def main() -> int:
    """Every stream in turn."""
    parser = arguments(__doc__)
    parser.add_argument("--lake", type=Path, required=True)
    parser.add_argument("streams", nargs="*", metavar="STREAM")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lake = Lake(given.lake)
    there = {row["dataset"] for row in Ledger(lake).rows("SELECT DISTINCT dataset FROM sample_index")}
    rows, bounds = [], []
    for name in given.streams or [name for name in names() if load_recipe(name).dataset in there]:
        note(name)
        rows.append(row := probe(lake, load_recipe(name)))
        bounds.append(Bound(f"{name}: upper end of the difference", row["high"], 0.0, False))
    return report(rows, bounds, as_json=given.json)


if __name__ == "__main__":
    sys.exit(main())
