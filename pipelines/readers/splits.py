"""From the parts that a data set has been cut into to train, val and test."""

from __future__ import annotations

from collections.abc import Collection

from pipelines.readers import draw_split
from store.types import Split

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "validate": "val", "test": "test"}


def split_of(part: str, parts: Collection[str], group: str) -> Split:
    """The split of what lies in `part` of a data set that has `parts`, keys of `PARTS`.

    Of train and test, a tenth of train is val; of train and val, val is what is tested and a tenth of train is val;
    of train alone, everything is drawn. What shares a `group` is never parted.
    """
    has, part = {PARTS[one] for one in parts}, PARTS[part]
    if part == "train" and has != {"train", "val", "test"}:
        return draw_split(group, train=0.9) if len(has) > 1 else draw_split(group)
    return Split(part if part != "val" or "test" in has else "test")
