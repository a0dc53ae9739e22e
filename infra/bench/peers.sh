#!/bin/sh
# The peers' own virtual environment, in DIR/peers: video2dataset, litdata and MosaicML streaming, with a CPU torch whatever
# their metadata asks for; hnswlib.
#   infra/bench/peers.sh DIR [PIP_ARGS...]        PIP_ARGS may name an index of CPU builds of torch
set -eu
cd "$(dirname "$0")/../.."
venv=$1/peers
shift
"${PYTHON:-python3}" -m venv --clear "$venv"
pip="$venv/bin/python -m pip install -q --disable-pip-version-check"
$pip "$@" -c constraints.txt torch numpy webdataset fsspec pyarrow pillow soundfile ffmpeg-python \
    click einops fire langdetect omegaconf opencv-python-headless pandas platformdirs psutil requests \
    timeout-decorator tqdm webvtt-py yt-dlp \
    boto3 brotli catalogue filelock lightning-utilities obstore python-snappy xxhash zstd
$pip "$@" --no-deps video2dataset==1.3.0 scenedetect==0.6.2 torchdata==0.7.1 decord==0.6.0 \
    litdata==0.2.76 mosaicml-streaming==0.13.0
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


for name, parts in {
    "wandb": (),
    "torchaudio": ("functional",),
    "torchvision": ("datasets", "transforms", "transforms.functional"),
    "transformers": (
        "feature_extraction_utils",
        "modeling_outputs",
        "models",
        "models.auto",
        "models.auto.tokenization_auto",
        "tokenization_utils_base",
    ),
}.items():
    for whole in (name, *(f"{name}.{part}" for part in parts)):
        sys.modules[whole] = Absent(whole)
PYTHON
"$venv/bin/python" -c 'import litdata, streaming, video2dataset'
touch "$venv/.ready"
