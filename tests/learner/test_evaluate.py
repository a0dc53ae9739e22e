from __future__ import annotations

import pytest

from learner.evaluate import subsets
from store.types import Modality

V, A, T, I = Modality.VIDEO, Modality.AUDIO, Modality.TEXT, Modality.IMU  # noqa: E741


@pytest.mark.parametrize(
    ("modalities", "names"),
    [
        ([A], ["all"]),
        ([V, A], ["video", "audio", "all"]),
        ([V, A, T], ["video", "audio", "text", "video+audio", "video+text", "audio+text", "all"]),
        ([V, A, T, I], ["video", "audio", "text", "imu", "all"]),
    ],
)
def test_modality_sets_measured(modalities, names):
    found = dict(subsets(modalities))
    assert list(found) == names
    assert found["all"] == tuple(modalities)
