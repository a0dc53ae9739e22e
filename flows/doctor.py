"""Look at the machine: is everything here that Palimpsest needs, and what is to be done where it is not?"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from store.lake import Lake

REINSTALL = "install again: make setup, or pip install -c constraints.txt -e '.[cpu]'"
FREE_GB = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Attributes:
        found: the version or state, or what went wrong.
        sound: whether it will do.
        remedy: what to do where it will not.
        required: whether anything fails without it.
    """

    name: str
    found: str
    sound: bool
    remedy: str = REINSTALL
    required: bool = True


def examine(lake: Lake) -> Iterator[Finding]:
    """Look at everything in turn; nothing is written and no lake is made."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", version, sys.version_info >= (3, 11), "Palimpsest needs Python 3.11 or later")
    yield _program("ffmpeg", "-version", "install ffmpeg, for example: apt-get install ffmpeg")
    remedy = "without it synthesised speech has one built-in voice; apt-get install espeak-ng brings more"
    yield _program("espeak-ng", "--version", remedy, required=False)
    yield _try("torch", _torch)
    yield _try("torchaudio", _torchaudio)
    remedy = "install one of the extras cpu and gpu: pip install -c constraints.txt -e '.[cpu]'"
    yield _try("faiss", _import("faiss"), remedy)
    yield _try("duckdb", _duckdb)
    for module in ("av", "simplejpeg", "soundfile", "webdataset"):
        yield _try(module, _import(module))
    yield _try("prefect", _prefect)
    yield from _disk(lake)


def _program(name: str, flag: str, remedy: str, *, required: bool = True) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, "not found on PATH", False, remedy, required)
    answer = subprocess.run([path, flag], capture_output=True, text=True, timeout=60)
    first = (answer.stdout or answer.stderr).partition("\n")[0].partition(" Copyright")[0]
    return Finding(name, first, answer.returncode == 0, remedy, required)


def _try(name: str, look: Callable[[], str], remedy: str = REINSTALL) -> Finding:
    try:
        return Finding(name, look(), True)
    except Exception as error:  # a broken install can raise anything
        return Finding(name, f"{type(error).__name__}: {error}".splitlines()[0], False, remedy)


def _import(module: str) -> Callable[[], str]:
    return lambda: str(getattr(importlib.import_module(module), "__version__", "here"))


def _torch() -> str:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA: all runs on the CPU"
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {device}"


def _torchaudio() -> str:
    import torch

    from learner.torchaudio_cpu import torchaudio

    torchaudio.transforms.MelSpectrogram(sample_rate=16000, n_mels=8)(torch.zeros(1600))
    extension = torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE
    return f"{torchaudio.__version__}, {'with its extension' if extension else 'in pure torch'}"


def _duckdb() -> str:
    import duckdb

    with duckdb.connect() as connection:
        connection.sql("SELECT json_extract('[1]', '$[0]')").fetchall()
    return duckdb.__version__


def _prefect() -> str:
    # In a process of its own: only flows/deployments imports Prefect, and a server beside a wrong FastAPI fails here.
    code = "import prefect, prefect.server.api.server; print(prefect.__version__)"
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    if answer.returncode:
        raise ImportError((answer.stderr.strip() or "no message").splitlines()[-1])
    return answer.stdout.strip()


def _disk(lake: Lake) -> Iterator[Finding]:
    folder = next(path for path in (lake.root, *lake.root.parents) if path.exists())
    where = f"{lake.root}{'' if folder == lake.root else ' (not there yet)'}"
    try:
        tempfile.TemporaryFile(dir=folder).close()  # os.access would say yes to root on a read-only disk
        yield Finding("lake", where, True)
    except OSError as error:
        remedy = "give --lake, or set PALIMPSEST_LAKE to, a folder that you may write to"
        yield Finding("lake", f"{where}: {error.strerror}", False, remedy)
    free = shutil.disk_usage(folder).free / 1e9
    yield Finding("disk", f"{free:.1f} GB free", free >= FREE_GB, f"free some space on the disk of {folder}", False)
