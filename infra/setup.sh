#!/bin/sh
# Make the virtual environment VENV with everything the project needs; run again, it changes only what has to change.
#   infra/setup.sh VENV [EXTRAS] [PIP_ARGS...]
set -eu
cd "$(dirname "$0")/.."
venv=$1 extras=${2:-cpu,dev}
shift "$(($# < 2 ? $# : 2))"

have() { command -v "$1" >/dev/null 2>&1; }

# Debian packages, where we are root on a Debian: elsewhere the caller says what is missing.
debian() {
    [ "$(id -u)" = 0 ] && have apt-get || return 1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" && return
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "setup: Palimpsest needs Python 3.11 or later; install it (Debian 12: apt-get install python3)," \
        "or say where it is: make setup PYTHON=/path/to/python3.11" >&2
    exit 1
fi

if ! have ffmpeg && ! debian ffmpeg; then
    echo "setup: ffmpeg is missing; install it (as root: apt-get install ffmpeg) and run make again" >&2
    exit 1
fi
have espeak-ng || debian espeak-ng ||
    echo "setup: no espeak-ng; synthesised speech uses the built-in formant voice" >&2

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    # Debian's python3 comes without ensurepip, which python3-venv brings.
    "$python" -c 'import ensurepip, venv' 2>/dev/null || debian python3-venv || {
        echo "setup: $python cannot make virtual environments; install python3-venv and run make again" >&2
        exit 1
    }
    "$python" -m venv --clear "$venv"
fi

echo "setup: installing into $venv (a few minutes the first time)"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check -c constraints.txt "$@" -e ".[$extras]"
