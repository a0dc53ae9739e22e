"""Audio-visual class-incremental learning, for any modalities: contrast between them, and distillation by task.

After AV-CIL (Pian et al. 2023). New classes compete among themselves on new samples and old ones on exemplars, the
classes of each earlier task are distilled apart at T = 2 (both after SS-IL, Ahn et al. 2021), and representations of
all pairs of modalities are contrasted by sample and by class at temperature 0.05, over new samples and exemplars.
The paper also pools what is seen by attention that what is heard guides, and distils its maps in space and time on
exemplars. The shared network pools each modality by its frozen backbone and looks across only through the latents of
its adapters: it has no such map, and this adaptation is without that term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from learner.batch import Batch
from learner.data import Task
from learner.losses.alignment import alignment
from learner.losses.classification import among
from learner.losses.distillation import distillation
from learner.methods.base import Context, ParameterGroup, UseOfExemplars
from learner.methods.taught import Taught

TEMPERATURE = 0.05


class AVCIL(Taught):
    """The method's hooks; see `methods.base.Method`.

    Args:
        context: see `methods.base.Context`.
        by_sample: weight of the contrast whose positives are one sample's modalities, lambda_I.
        by_class: weight of the contrast whose positives are all samples of a class, lambda_C.
        shape: of the network.
    """

    exemplars: UseOfExemplars = "needed"
    aligned = True

    def __init__(self, context: Context, *, by_sample: float = 0.5, by_class: float = 1.0, **shape: Any):
        super().__init__(context, **shape)
        self.by_sample, self.by_class = by_sample, by_class
        self.past: list[list[int]] = []  # the classes that each earlier task brought
        self.known = torch.empty(0, dtype=torch.int64)  # all classes but those first met in this task

    def begin_task(self, task: Task) -> list[ParameterGroup]:
        """Tell the classes that the task brings from all others."""
        fresh = self._fresh_classes(task)
        others = [c for c in range(len(self.context.index.classes)) if c not in fresh]
        self.known = torch.tensor(others, dtype=torch.int64, device=self.context.device)
        return super().begin_task(task)

    def loss(self, batch: Batch, replay: Batch | None, generator: torch.Generator) -> dict[str, Tensor]:
        """Separated cross-entropy + distillation by task + contrast by sample and by class."""
        parts = [batch] if replay is None else [batch, replay]
        outputs = [self._output(part, generator) for part in parts]
        terms = {"classification": among(outputs[0].logits, batch.labels, self.own)}
        if replay is not None:
            # A corrected exemplar may be of a class that this task brings.
            known = torch.cat([self.known, replay.labels]).unique()
            terms["rehearsal"] = among(outputs[1].logits, replay.labels, known)
        if formers := [former for part in parts if (former := self._former(part)) is not None]:
            logits, former = torch.cat([output.logits for output in outputs]), torch.cat(formers)
            terms["distillation"] = torch.stack(
                [distillation(logits[:, classes], former[:, classes]) for classes in self.past]
            ).sum()
        gather = self.context.gather
        z = {m: gather(torch.cat([output.z[m] for output in outputs])) for m in outputs[0].z}
        presence = gather(torch.cat([part.presence for part in parts]).float()).bool()
        labels = gather(torch.cat([part.labels for part in parts]))
        for name, weight, same in (
            ("contrast by sample", self.by_sample, torch.arange(len(labels), device=labels.device)),
            ("contrast by class", self.by_class, labels),
        ):
            terms[name] = weight * alignment(z, presence, same, temperature=TEMPERATURE, margin=math.inf)
        return terms

    def end_task(self, task: Task) -> None:
        """Note which classes were new."""
        if fresh := self._fresh_classes(task):
            self.past.append(fresh)

    def state_dict(self) -> dict[str, Any]:
        """The network and the classes by task."""
        return {**super().state_dict(), "past": self.past}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over both."""
        super().load_state_dict(state)
        self.past = [list(classes) for classes in state["past"]]

    def _fresh_classes(self, task: Task) -> list[int]:
        past = {c for classes in self.past for c in classes}
        return [c for c in task.train.classes if c not in past]
