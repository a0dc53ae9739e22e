"""Experience replay: each step learns from new samples and as many exemplars, as from one batch.

ER (Chaudhry et al. 2019): where there are fewer exemplars than new samples, each counts no more than a new one. The
exemplars are the trainer's, balanced over classes and domains and drawn at random, in place of the paper's ring buffer
or reservoir.
"""

from __future__ import annotations

from learner.methods.base import UseOfExemplars
from learner.methods.finetune import Finetune


class ER(Finetune):
    """`Finetune` on new samples and exemplars alike."""

    exemplars: UseOfExemplars = "needed"
