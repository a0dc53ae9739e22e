"""Experience replay: each step learns from new samples and as many exemplars.

ER (Chaudhry et al. 2019). The exemplars are the trainer's, balanced over classes and domains and drawn at random, in
place of the paper's ring buffer or reservoir.
"""

from __future__ import annotations

from learner.methods.base import UseOfExemplars
from learner.methods.finetune import Finetune


class ER(Finetune):
    """`Finetune`, which rehearses what exemplars there are, with the promise that there are some."""

    exemplars: UseOfExemplars = "needed"
