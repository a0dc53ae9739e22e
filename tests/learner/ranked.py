"""What torchrun starts in the tests: `ranked.py update LAKE [STEP]`, or `ranked.py sums OUT`.

`update` learns the stream that a test has left in LAKE; the first process kills itself after STEP steps in all.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from flows import build
from flows.update import update
from learner.distributed import join
from learner.trainer import Settings
from store.lake import Lake
from tests.learner.handmade import make_recipe

RECIPE = make_recipe(epochs=2, batch_size=5, memory=4)  # the steps of 5 do not divide among 2 evenly


def learn(lake: Lake, last: int | None) -> None:
    """Update, with a checkpoint every three steps."""
    steps = 0

    def tell(what: str, done: int, total: int) -> None:
        nonlocal steps
        steps += what.startswith("task")
        if steps == last and join().leads:
            os.kill(os.getpid(), signal.SIGKILL)

    build.Settings = partial(Settings, checkpoint_every=3)  # type: ignore[misc, assignment]
    update(lake, RECIPE, progress=tell)


def sums(out: Path) -> None:
    """Write what the ranks make of numbers that differ from rank to rank."""
    ranks = join()
    held, absent = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))
    held.grad = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    if ranks.leads:
        absent.grad = torch.ones(1)
    ranks.average([held, absent])
    rows = torch.full((1 + ranks.rank, 2), float(ranks.rank + 1), requires_grad=True)
    (ranks.gather(rows) ** 2).sum().backward()
    plain = ranks.gather(torch.arange(2 - ranks.rank))
    told = ranks.told({"by": ranks.rank})
    found = {"average": [held.grad.tolist(), absent.grad.tolist()], "gradient": rows.grad.tolist()}  # type: ignore[union-attr]
    (out / f"{ranks.rank}.json").write_text(json.dumps(found | {"plain": plain.tolist(), "told": told}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, where, *rest = sys.argv[1:]
    if what == "update":
        learn(Lake(Path(where)), int(rest[0]) if rest else None)
    else:
        sums(Path(where))
