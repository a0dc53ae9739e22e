"""`from learner.torchaudio_cpu import torchaudio`: torchaudio, beside a CPU-only torch too.

The published wheels of torchaudio link CUDA, so their compiled extension does not load beside a CPU build of torch and
takes the whole import down. All that is used here (mel spectrograms, Kaldi filter banks, MFCC, resampling) is plain
torch: where the import fails, a stand-in declares the extension absent, which is a state torchaudio knows.
Import this module before transformers, which imports torchaudio by itself wherever it is installed.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

EXTENSION = "torchaudio._extension"


def load() -> ModuleType:
    """The torchaudio module, whole where its extension loads, in pure torch where it does not.

    Raises:
        ModuleNotFoundError: torchaudio is not installed.
    """
    try:
        return importlib.import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
    sys.modules[EXTENSION] = _stand_in()
    return importlib.import_module("torchaudio")


def _stand_in() -> ModuleType:
    module = ModuleType(EXTENSION, "Stands in for torchaudio's compiled extension and says that there is none.")
    vars(module).update(_IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=_refuse)
    return module


def _refuse(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"{function.__name__} needs torchaudio's compiled extension, which does not load here")

    return refuse


torchaudio = load()
