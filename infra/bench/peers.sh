#!/bin/sh
# The peers' own virtual environment, in DIR/peers: video2dataset, with a CPU torch whatever its metadata asks for; hnswlib.
#   infra/bench/peers.sh DIR [PIP_ARGS...]        PIP_ARGS may name an index of CPU builds of torch
set -eu
cd "$(dirname "$0")/../.."
venv=$1/peers
shift
"${PYTHON:-python3}" -m venv --clear "$venv"
pip="$venv/bin/python -m pip install -q --disable-pip-version-check"
$pip "$@" -c constraints.txt torch numpy webdataset fsspec pyarrow pillow soundfile ffmpeg-python \
    click einops fire langdetect omegaconf opencv-python-headless pandas platformdirs psutil requests \
    timeout-decorator tqdm webvtt-py yt-dlp
$pip "$@" --no-deps video2dataset==1.3.0 scenedetect==0.6.2 torchdata==0.7.1 decord==0.6.0
$pip "$@" hnswlib==0.8.0 || echo "hnswlib is left out: it is compiled, and that failed" >&2
# Imported by modules that no benchmark calls, and heavy or broken beside a CPU torch: stand-ins are imported instead.
cat >"$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/sitecustomize.py" <<'PYTHON'
import sys
import types


class Absent(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in ("wandb", "transformers", "transformers.modeling_outputs", "torchaudio", "torchaudio.functional"):
    sys.modules[name] = Absent(name)
PYTHON
"$venv/bin/python" -c 'import video2dataset'
touch "$venv/.ready"
