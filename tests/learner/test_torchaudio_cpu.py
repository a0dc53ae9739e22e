from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from learner.torchaudio_cpu import torchaudio

RATE = 16000
ROOT = Path(__file__).parents[2]


@pytest.fixture
def tone() -> torch.Tensor:
    """One second of 1 kHz, [1, 16000]."""
    return torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)[None]


def test_mel_spectrogram_finds_the_tone(tone: torch.Tensor) -> None:
    mel = torchaudio.transforms.MelSpectrogram(sample_rate=RATE, n_fft=512, n_mels=40)(tone)
    edges = torchaudio.functional.melscale_fbanks(257, 0, RATE / 2, 40, RATE)
    expected = edges[round(1000 / (RATE / 512))].argmax()
    assert mel.mean(-1).argmax() == expected


def test_kaldi_filter_bank_has_a_frame_every_10_ms(tone: torch.Tensor) -> None:
    bank = torchaudio.compliance.kaldi.fbank(tone, sample_frequency=RATE, num_mel_bins=64)
    assert bank.shape == (98, 64)
    assert bank.isfinite().all()


def test_mfcc_and_resample(tone: torch.Tensor) -> None:
    assert torchaudio.transforms.MFCC(sample_rate=RATE, n_mfcc=13, melkwargs={"n_mels": 40})(tone).shape[1] == 13
    half = torchaudio.functional.resample(tone, RATE, RATE // 2)
    assert torch.allclose(half[:, 100:-100], tone[:, ::2][:, 100:-100], atol=1e-2)


def test_what_needs_the_extension_says_so() -> None:
    if torchaudio._extension._IS_ALIGN_AVAILABLE:
        pytest.skip("the extension is here")
    with pytest.raises(RuntimeError, match="forced_align needs torchaudio's compiled extension"):
        torchaudio.functional.forced_align(torch.zeros(1, 4, 3), torch.ones(1, 2, dtype=torch.int32))


def test_an_extension_that_loads_is_left_alone(tmp_path: Path) -> None:
    package = tmp_path / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import _extension\n")
    (package / "_extension" / "__init__.py").write_text("_IS_TORCHAUDIO_EXT_AVAILABLE = True\n")
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "from learner.torchaudio_cpu import torchaudio\n"
        "print(torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "True"
