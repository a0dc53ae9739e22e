"""Trees of arrays and JSON on disk, and the snapshots of a run made of them: safetensors, checksums, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from store.anchors import AnchorStore
from store.lake import SUMS, Lake, new_folder, write_sums
from store.ledger import Ledger
from store.types import PalimpsestError

_TENSOR = "$tensor"
_DTYPES = {"bool", "complex64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))} | {
    f"float{bits}" for bits in (16, 32, 64)
}


def save_tree(folder: Path, tree: dict[str, Any]) -> str:
    """Write a nested dict or list of numpy arrays and JSON values as one folder, in one step; a former one is replaced.

    `tensors.safetensors` holds the arrays, `state.json` the rest, `SHA256SUMS` the checksums of both.

    Returns:
        The SHA-256 of `SHA256SUMS`: it names the tree's content.

    Raises:
        TypeError: a part would not come back as it went in (tuples, keys that are no strings, NumPy scalars, objects).
    """
    tensors: dict[str, np.ndarray] = {}
    state = json.dumps(_split(tree, "state", tensors))
    with new_folder(folder) as aside:
        safetensors.numpy.save_file(tensors, aside / "tensors.safetensors")
        (aside / "state.json").write_text(state)
        return write_sums(aside)


def load_tree(folder: Path) -> dict[str, Any]:
    """The tree that `save_tree` wrote into `folder`; its arrays are writable.

    Raises:
        PalimpsestError: the folder is absent, incomplete or damaged.
    """
    try:
        content = {name: (folder / name).read_bytes() for name in ("state.json", "tensors.safetensors")}
        sums = (folder / SUMS).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise PalimpsestError(f"{folder} holds no complete state: {error}. Restore it from a backup.") from error
    if sums != "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in content.items()):
        raise PalimpsestError(f"{folder} is damaged: its files differ from {SUMS}. Restore it from a backup.")
    return _join(json.loads(content["state.json"]), safetensors.numpy.load(content["tensors.safetensors"]))


def snapshot_id(run_id: str, after_task: int) -> str:
    """How the snapshot of a run after a task is called, ``<run_id>/<after_task>``."""
    return f"{run_id}/{after_task:03d}"


def save_snapshot(
    lake: Lake,
    ledger: Ledger,
    *,
    run_id: str,
    after_task: int,
    tree: dict[str, Any],
    parent: str | None,
    parameters: int,
    trained_parameters: int,
    memory_bytes: int,
    anchors: AnchorStore | None = None,
) -> str:
    """Keep `tree` as what run `run_id` had learned after task `after_task`; one already recorded stays as it is.

    Args:
        lake: where to.
        ledger: of the same lake.
        run_id: of the run.
        after_task: number of the task just learned, from 1.
        tree: what `save_tree` takes.
        parent: the snapshot it went on from.
        parameters: all of the model, the backbones among them.
        trained_parameters: those that were trained.
        memory_bytes: everything derived from past data that the model keeps.
        anchors: kept in a folder of their own, which the tree names by content; written first, so that a snapshot that
            exists has them.

    Returns:
        The snapshot's id.
    """
    name = snapshot_id(run_id, after_task)
    if not ledger.rows("SELECT 1 FROM snapshots WHERE snapshot_id = ?", [name]):
        folder = _folder(lake, name)
        if anchors is not None:
            tree = {**tree, "anchors": anchors.save(_folder(lake, name, "anchors"))}
        row = {
            "snapshot_id": name,
            "run_id": run_id,
            "after_task": after_task,
            "path": str(folder.relative_to(lake.root)),
            "sha256": save_tree(folder, tree),
            "parent": parent,
            "parameters": parameters,
            "trained_parameters": trained_parameters,
            "memory_bytes": memory_bytes,
        }
        ledger.append("snapshots", [row])
    return name


def load_snapshot(lake: Lake, name: str) -> dict[str, Any]:
    """The tree of a snapshot.

    Raises:
        PalimpsestError: there is no such snapshot, or it is damaged.
    """
    return load_tree(_folder(lake, name))


def load_anchors(lake: Lake, name: str, tree: Mapping[str, Any], *, mapped: bool = False) -> AnchorStore:
    """The anchors of a snapshot.

    Args:
        lake: holds it.
        name: its id.
        tree: what `load_snapshot` gave; it names them by content.
        mapped: open them for reading only, rather than load them into memory.

    Raises:
        PalimpsestError: they are absent, damaged, or not those of the snapshot.
    """
    read = AnchorStore.open if mapped else AnchorStore.load
    return read(_folder(lake, name, "anchors"), tree["anchors"])


def list_snapshots(ledger: Ledger, stream: str) -> list[dict[str, Any]]:
    """The stream's snapshots, newest last: their ledger rows, method and seed, and the last verdict on each."""
    return ledger.rows(
        """
        SELECT n.*, r.method, r.seed, r.trial, p.verdict, p.reason, p.figures
        FROM snapshots n JOIN runs r USING (run_id) LEFT JOIN (
            SELECT * FROM promotions WHERE stream = $stream
            QUALIFY row_number() OVER (PARTITION BY snapshot_id ORDER BY promotion DESC) = 1
        ) p USING (snapshot_id)
        WHERE r.stream = $stream ORDER BY n.recorded_at, n.snapshot_id
        """,
        {"stream": stream},
    )


def _folder(lake: Lake, name: str, kind: str = "snapshots") -> Path:
    run_id, _, task = name.rpartition("/")
    if not task.isdecimal() or "/" in run_id or run_id in ("", ".", ".."):
        raise PalimpsestError(f"{name!r} is no snapshot: an id looks like RUN/001, see `palimpsest snapshots`.")
    return lake.run(run_id) / kind / task


def _split(node: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """`node` as JSON, its arrays moved to `tensors` and named by their path."""
    if isinstance(node, np.ndarray) and node.dtype.name in _DTYPES:
        name = path
        while name in tensors:  # {"a/b": x, "a": {"b": y}}
            name += "~"
        tensors[name] = np.ascontiguousarray(node).reshape(node.shape)
        return {_TENSOR: name}
    if isinstance(node, Mapping) and _TENSOR not in node and all(isinstance(key, str) for key in node):
        return {key: _split(child, f"{path}/{key}", tensors) for key, child in node.items()}
    if isinstance(node, list):
        return [_split(child, f"{path}/{i}", tensors) for i, child in enumerate(node)]
    if node is None or isinstance(node, bool | int | float | str) and not isinstance(node, np.generic):
        return node
    raise TypeError(
        f"{path} is {type(node).__name__} and would not come back as it is: a tree holds dicts with string "
        f"keys, lists, arrays of {', '.join(sorted(_DTYPES))}, and JSON values"
    )


def _join(node: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(node, dict):
        return tensors[node[_TENSOR]] if _TENSOR in node else {key: _join(part, tensors) for key, part in node.items()}
    return [_join(part, tensors) for part in node] if isinstance(node, list) else node
