#!/bin/sh
# A consistent copy of a lake in use: infra/backup.sh LAKE BACKUP makes BACKUP/<time>, hard-linked to the one before.
set -eu
if [ $# -ne 2 ] || [ ! -d "$1/ledger" ]; then
    echo "usage: $0 LAKE BACKUP, where LAKE is a folder that holds ledger/" >&2
    exit 2
fi
command -v rsync >/dev/null || { echo "$0: rsync is missing; apt-get install rsync" >&2; exit 1; }
mkdir -p "$2"
lake=$(cd "$1" && pwd) backup=$(cd "$2" && pwd)
former=$(ls "$backup" | grep -E '^[0-9]{8}T[0-9]{6}Z$' | tail -n 1)
now=$(date -u +%Y%m%dT%H%M%SZ)
trap 'rm -rf "$backup/$now.part"' EXIT

copy() {
    # 24: a file was compacted away while being copied; what replaced it was there before.
    rsync -a --exclude '.*.tmp' ${former:+--link-dest="$backup/$former/"} "$@" "$backup/$now.part/" || [ $? = 24 ]
}

# The ledger first: what its rows name was committed before them. Twice, so that files compacted meanwhile are caught
# by their replacement; not deleted in between, since a row that is there twice counts once.
copy --relative "$lake/./ledger"
copy --relative "$lake/./ledger"
copy --exclude /ledger --exclude /cache --exclude /locks --exclude '/catalog.duckdb*' "$lake/"
mv "$backup/$now.part" "$backup/$now"
echo "$backup/$now"
