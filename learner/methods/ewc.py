"""Elastic weight consolidation: what mattered to earlier tasks moves less.

EWC (Kirkpatrick et al. 2017) in its online form (Schwarz et al. 2018): one penalty around the parameters as they ended
the former task, weighted by the running sum of the tasks' Fisher information, so the cost does not grow with the tasks.
The Fisher information is the empirical one, at the true labels, over an even choice of the task's samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learner.batch import Batch
from learner.data import Examples, Task
from learner.methods.base import Context
from learner.methods.taught import Taught


class EWC(Taught):
    """The method's hooks; see `methods.base.Method`.

    Args:
        context: see `methods.base.Context`.
        penalty: lambda, weight of the quadratic term.
        decay: gamma, what a task leaves of the Fisher information before it; 1 sums all tasks alike.
        fisher_samples: of a task from which it is estimated, at most.
        shape: of the network.
    """

    def __init__(
        self, context: Context, *, penalty: float = 1000.0, decay: float = 1.0, fisher_samples: int = 256, **shape: Any
    ):
        super().__init__(context, **shape)
        self.penalty, self.decay, self.fisher_samples = penalty, decay, fisher_samples
        self.fisher: dict[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """The Fisher information."""
        return sum(values.nbytes for values in self.fisher.values())

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Cross-entropy as in fine-tuning + the elastic penalty."""
        terms = super().loss(batch, replay, generator)
        if self.teacher is not None:
            now, then = dict(self.network.named_parameters()), dict(self.teacher.named_parameters())
            terms["penalty"] = self.penalty * elastic(now, then, self.fisher)
        return terms

    def end_task(self, task: Task) -> None:
        """Add the task's Fisher information to what earlier tasks have left."""
        trained = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        found = fisher_information(trained, self._surprises(task.train))
        for name, former in self.fisher.items():
            found[name][: len(former)] += self.decay * former  # the head has grown
        self.fisher = found

    def state_dict(self) -> dict[str, Any]:
        """The network and the Fisher information; the penalty's centre is the former snapshot's network."""
        return {**super().state_dict(), "fisher": self.fisher}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over both."""
        super().load_state_dict(state)
        self.fisher = {name: values.to(self.context.device) for name, values in state["fisher"].items()}

    def _surprises(self, examples: Examples) -> Iterator[Tensor]:
        """-log p(label) of one sample after the other."""
        count = min(len(examples), self.fisher_samples)
        chosen = [examples.examples[i] for i in np.linspace(0, len(examples) - 1, count).astype(int)]
        for one in Examples(examples.features, chosen, examples.index).batches(1):
            yield F.cross_entropy(self.network(one).logits, one.labels)


def elastic(now: Mapping[str, Tensor], then: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> Tensor:
    """Half the squared distance of `now` from `then`, each parameter weighted by `fisher`; new rows are free."""
    terms = [(values * (now[name][: len(values)] - then[name]) ** 2).sum() for name, values in fisher.items()]
    return 0.5 * torch.stack(terms).sum()


def fisher_information(parameters: Mapping[str, nn.Parameter], losses: Iterable[Tensor]) -> dict[str, Tensor]:
    """The mean over samples of the squared gradient of each one's -log p, by parameter."""
    total, samples = {name: torch.zeros_like(p) for name, p in parameters.items()}, 0
    for loss in losses:
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for sum_of_squares, gradient in zip(total.values(), gradients, strict=True):
            if gradient is not None:
                sum_of_squares += gradient**2
        samples += 1
    return {name: values / max(1, samples) for name, values in total.items()}
